//! How the program is linked.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let is = |name: &str, value: &str| env::var(format!("CARGO_CFG_TARGET_{name}")).is_ok_and(|found| found == value);
    // The linker of the toolchain is LLD here since Rust 1.90; others have no such option.
    let has_lld = is("ARCH", "x86_64") && is("OS", "linux") && is("ENV", "gnu");
    let is_replaced = env::var_os("RUSTC_LINKER").is_some();
    if has_lld && !is_replaced {
        // Clouds' clients have thousands of functions with the same instructions.
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
