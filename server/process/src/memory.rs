//! Memory of the process.

/// Returns freed memory to the system. glibc keeps what was freed below memory that is in use, in each thread's arena.
pub fn release_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: declared as in glibc's malloc.h; it may be called at any time, from any thread.
        unsafe { malloc_trim(0) };
    }
}
