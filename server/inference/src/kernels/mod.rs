//! The compute kernels: written once over sixteen lanes, compiled for each instruction set, and selected at run time.
//!
//! Invariant: each lane computes one output element and adds its inputs in ascending order. It uses fused multiply-add
//! and this crate's own functions. So AVX-512, AVX2 and the scalar code give identical bits. A row gives the same result
//! alone and in any batch, with any split of its prompt, and on any number of threads.

pub(crate) mod attention;
pub(crate) mod coded;
pub(crate) mod lanes;
pub(crate) mod linear;
pub(crate) mod rows;

use attention::{Attend, Piece};
use linear::Linear;
use std::ops::Range;

/// An instruction set that the kernels were built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW and VNNI.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Any CPU; slow.
    Plain,
}

impl Isa {
    /// All instruction sets, the fastest first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Plain];

    /// The fastest instruction set of this CPU.
    pub fn best() -> Isa {
        Self::ALL.into_iter().find(|isa| isa.is_here()).unwrap_or(Isa::Plain)
    }

    /// Whether this CPU supports it.
    pub fn is_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            Isa::Plain => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Plain => "plain",
        })
    }
}

type Quantize = unsafe fn(*const f32, usize, *mut i8, *mut f32, *mut i32);

/// The kernels of one instruction set. A call is sound if the CPU supports the set, which [`Kernels::of`] has checked,
/// and if the safety contract of the kernel holds.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) linear: unsafe fn(&Linear, Range<usize>),
    pub(crate) attend: unsafe fn(&Attend, &Piece<'_>, usize),
    pub(crate) layer_norm: unsafe fn(*const f32, *const f32, *const f32, usize, f32, *mut f32),
    pub(crate) rms_norm: unsafe fn(*const f32, *const f32, usize, f32, *mut f32),
    pub(crate) quantize: Quantize,
    pub(crate) soft_cap: unsafe fn(*mut f32, usize, f32),
}

impl Kernels {
    /// The kernels of an instruction set. If the CPU does not support it: the kernels of the best supported set.
    pub(crate) fn of(isa: Isa) -> Kernels {
        let isa = if isa.is_here() { isa } else { Isa::best() };
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::KERNELS,
            _ => plain::KERNELS,
        }
    }
}

/// Compiles all kernels for one instruction set. Complete kernels are compiled, so that no loop contains a dispatch.
macro_rules! build {
    ($name:ident, $isa:expr, $lanes:ty, $rows:literal $(, $feature:literal)*) => {
        // SAFETY (the whole module): callers run on a CPU with this instruction set and meet the safety contracts of the
        // kernels.
        #[allow(clippy::undocumented_unsafe_blocks)]
        mod $name {
            use super::{Attend, Isa, Kernels, Linear, Piece, Range, attention, lanes, linear as product, rows};

            pub(super) const KERNELS: Kernels =
                Kernels { isa: $isa, linear, attend, layer_norm, rms_norm, quantize, soft_cap };

            $(#[target_feature(enable = $feature)])*
            unsafe fn linear(job: &Linear, tiles: Range<usize>) {
                unsafe { product::linear::<$lanes, $rows>(job, tiles) }
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn attend(job: &Attend, piece: &Piece<'_>, worker: usize) {
                unsafe {
                    if job.half {
                        attention::attend::<$lanes, true>(job, piece, worker)
                    } else {
                        attention::attend::<$lanes, false>(job, piece, worker)
                    }
                }
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn layer_norm(x: *const f32, w: *const f32, b: *const f32, width: usize, eps: f32, out: *mut f32) {
                unsafe { rows::layer_norm::<$lanes>(x, w, b, width, eps, out) }
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn rms_norm(x: *const f32, w: *const f32, width: usize, eps: f32, out: *mut f32) {
                unsafe { rows::rms_norm::<$lanes>(x, w, width, eps, out) }
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn quantize(x: *const f32, groups: usize, bytes: *mut i8, scales: *mut f32, totals: *mut i32) {
                unsafe { rows::quantize::<$lanes>(x, groups, bytes, scales, totals) }
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn soft_cap(x: *mut f32, count: usize, cap: f32) {
                unsafe { rows::soft_cap::<$lanes>(x, count, cap) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
build!(avx512, Isa::Avx512, lanes::Avx512, 4, "avx512f", "avx512bw", "avx512vl", "avx512vnni");
#[cfg(target_arch = "x86_64")]
build!(avx2, Isa::Avx2, lanes::Avx2, 2, "avx2", "fma", "f16c");
build!(plain, Isa::Plain, lanes::Plain, 1);
