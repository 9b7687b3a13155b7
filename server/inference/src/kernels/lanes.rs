//! Sixteen numbers at a time, on any CPU: the one vocabulary in which the kernels are written.
//!
//! Every operation is exactly defined (IEEE 754 single operations and exact integers), so that the three
//! implementations give the same bits. The kernels are generic over [`Lanes`] and are instantiated once per instruction
//! set inside functions that enable it (see `build!` in the parent module).

/// How many numbers a vector holds, and how many outputs a tile of weights has.
pub(crate) const LANES: usize = 16;

/// A vector of sixteen `f32`.
///
/// # Safety
/// All methods need the CPU to have the implementation's instruction set; the pointers must be valid for sixteen
/// elements (or as said).
pub(crate) trait Lanes: Copy {
    /// Sixteen integer sums of products, in whatever form the instruction set keeps them.
    type Sums: Copy;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_half(from: *const u16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `a · b + self` with one rounding.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The larger; `self` when it is not a number.
    unsafe fn at_least(self, low: Self) -> Self;
    /// The smaller; `self` when it is not a number.
    unsafe fn at_most(self, high: Self) -> Self;
    /// Rounded to the nearest integer, ties to even, for magnitudes below 2³¹.
    unsafe fn round(self) -> Self;
    /// 2 to the power of whole numbers in -126..=127.
    unsafe fn exp2_whole(self) -> Self;
    /// The magnitudes' bits as integers, for maxima that also see what is not a number.
    unsafe fn largest_magnitude(self, so_far: Self) -> Self;
    /// Rounds to integers (ties to even) and keeps the low byte of each, for magnitudes up to 127.
    unsafe fn store_bytes(self, to: *mut i8);

    /// Sums that begin at a number.
    unsafe fn sums(start: i32) -> Self::Sums;
    /// Adds the products of sixteen quads of unsigned weights (64 bytes) and one quad of signed activations.
    unsafe fn dot(sums: Self::Sums, weights: *const u8, quad: *const i8) -> Self::Sums;
    /// The sums as numbers (exact below 2²⁴, else rounded to nearest even).
    unsafe fn finish(sums: Self::Sums) -> Self;
    /// Asks for a cache line that will be read soon.
    unsafe fn soon(_at: *const u8) {}

    /// The first `count` lanes from memory, zeros behind.
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        if count >= LANES {
            // SAFETY: the caller vouches for `count` elements.
            return unsafe { Self::load(from) };
        }
        let mut part = [0f32; LANES];
        // SAFETY: as above, and `count < LANES`.
        unsafe {
            core::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), count);
            Self::load(part.as_ptr())
        }
    }

    /// Stores the first `count` lanes.
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        if count >= LANES {
            // SAFETY: the caller vouches for `count` elements.
            return unsafe { self.store(to) };
        }
        let mut part = [0f32; LANES];
        // SAFETY: as above, and `count < LANES`.
        unsafe {
            self.store(part.as_mut_ptr());
            core::ptr::copy_nonoverlapping(part.as_ptr(), to, count);
        }
    }

    /// The sum of all lanes, always in the same order: halves onto each other.
    #[inline(always)]
    unsafe fn total(self) -> f32 {
        let mut all = [0f32; LANES];
        // SAFETY: sixteen elements.
        unsafe { self.store(all.as_mut_ptr()) };
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                all[i] += all[i + width];
            }
            width /= 2;
        }
        all[0]
    }

    /// The largest of all lanes as bits of a magnitude (see [`Lanes::largest_magnitude`]).
    #[inline(always)]
    unsafe fn magnitude(self) -> u32 {
        let mut all = [0f32; LANES];
        // SAFETY: sixteen elements.
        unsafe { self.store(all.as_mut_ptr()) };
        all.iter().map(|v| v.to_bits()).max().unwrap_or(0)
    }

    /// The largest of all lanes; a lane that is not a number is passed over.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut all = [0f32; LANES];
        // SAFETY: sixteen elements.
        unsafe { self.store(all.as_mut_ptr()) };
        all.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
}

/// The plain twin: what the others must equal.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (a, b) in out.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        Plain(out)
    }
}

impl Lanes for Plain {
    type Sums = [i32; LANES];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Plain([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Plain(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Plain(bits.map(|b| half::f16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        let mut out = self.0;
        for (i, o) in out.iter_mut().enumerate() {
            *o = a.0[i].mul_add(b.0[i], *o);
        }
        Plain(out)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.each(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn at_least(self, low: Self) -> Self {
        self.each(low, |a, b| if b > a { b } else { a })
    }
    #[inline(always)]
    unsafe fn at_most(self, high: Self) -> Self {
        self.each(high, |a, b| if b < a { b } else { a })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Plain(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        Plain(self.0.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23)))
    }
    #[inline(always)]
    unsafe fn largest_magnitude(self, so_far: Self) -> Self {
        self.each(so_far, |a, b| f32::from_bits((a.to_bits() & 0x7fff_ffff).max(b.to_bits())))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8) {
        let bytes = self.0.map(|v| v.round_ties_even() as i32 as i8);
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(bytes) }
    }
    #[inline(always)]
    unsafe fn sums(start: i32) -> Self::Sums {
        [start; LANES]
    }
    #[inline(always)]
    unsafe fn dot(mut sums: Self::Sums, weights: *const u8, quad: *const i8) -> Self::Sums {
        // SAFETY: the caller's promise: 64 bytes and 4 bytes.
        let (weights, quad) =
            unsafe { (weights.cast::<[[u8; 4]; LANES]>().read_unaligned(), quad.cast::<[i8; 4]>().read_unaligned()) };
        for (sum, four) in sums.iter_mut().zip(weights) {
            for (w, x) in four.into_iter().zip(quad) {
                *sum += i32::from(w) * i32::from(x);
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn finish(sums: Self::Sums) -> Self {
        Plain(sums.map(|s| s as f32))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes};
    use core::arch::x86_64::*;

    /// AVX-512 F, BW and VNNI.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    // SAFETY (the whole block): the trait's contract: the CPU has the instruction set, pointers are valid.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx512 {
        type Sums = __m512i;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn load_half(from: *const u16) -> Self {
            unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Self(_mm512_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            unsafe { Self(_mm512_div_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn at_least(self, low: Self) -> Self {
            // The instruction returns its second operand when either is not a number.
            unsafe { Self(_mm512_max_ps(low.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn at_most(self, high: Self) -> Self {
            unsafe { Self(_mm512_min_ps(high.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            unsafe { Self(_mm512_roundscale_ps::<0x08>(self.0)) }
        }
        #[inline(always)]
        unsafe fn exp2_whole(self) -> Self {
            unsafe {
                let whole = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(whole)))
            }
        }
        #[inline(always)]
        unsafe fn largest_magnitude(self, so_far: Self) -> Self {
            unsafe {
                let bits = _mm512_and_si512(_mm512_castps_si512(self.0), _mm512_set1_epi32(0x7fff_ffff));
                Self(_mm512_castsi512_ps(_mm512_max_epu32(bits, _mm512_castps_si512(so_far.0))))
            }
        }
        #[inline(always)]
        unsafe fn store_bytes(self, to: *mut i8) {
            unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0))) }
        }
        #[inline(always)]
        unsafe fn sums(start: i32) -> Self::Sums {
            unsafe { _mm512_set1_epi32(start) }
        }
        #[inline(always)]
        unsafe fn dot(sums: Self::Sums, weights: *const u8, quad: *const i8) -> Self::Sums {
            unsafe {
                let quad = _mm512_set1_epi32(quad.cast::<i32>().read_unaligned());
                _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(weights.cast()), quad)
            }
        }
        #[inline(always)]
        unsafe fn finish(sums: Self::Sums) -> Self {
            unsafe { Self(_mm512_cvtepi32_ps(sums)) }
        }
        #[inline(always)]
        unsafe fn soon(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }

    /// AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    macro_rules! both {
        ($self:ident, $other:ident, $op:ident) => {
            unsafe { Self($op($self.0, $other.0), $op($self.1, $other.1)) }
        };
    }

    // SAFETY (the whole block): the trait's contract: the CPU has the instruction set, pointers are valid.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx2 {
        /// For each of four groups of four lanes: two partial sums a lane.
        type Sums = [__m256i; 4];

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_half(from: *const u16) -> Self {
            unsafe {
                Self(
                    _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
                )
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            both!(self, other, _mm256_add_ps)
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            both!(self, other, _mm256_sub_ps)
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            both!(self, other, _mm256_mul_ps)
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            both!(self, other, _mm256_div_ps)
        }
        #[inline(always)]
        unsafe fn at_least(self, low: Self) -> Self {
            // The instruction returns its second operand when either is not a number.
            both!(low, self, _mm256_max_ps)
        }
        #[inline(always)]
        unsafe fn at_most(self, high: Self) -> Self {
            both!(high, self, _mm256_min_ps)
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            unsafe { Self(_mm256_round_ps::<0x08>(self.0), _mm256_round_ps::<0x08>(self.1)) }
        }
        #[inline(always)]
        unsafe fn exp2_whole(self) -> Self {
            unsafe {
                let power = |v: __m256| {
                    let whole = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(whole))
                };
                Self(power(self.0), power(self.1))
            }
        }
        #[inline(always)]
        unsafe fn largest_magnitude(self, so_far: Self) -> Self {
            unsafe {
                let larger = |a: __m256, b: __m256| {
                    let bits = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fff_ffff));
                    _mm256_castsi256_ps(_mm256_max_epu32(bits, _mm256_castps_si256(b)))
                };
                Self(larger(self.0, so_far.0), larger(self.1, so_far.1))
            }
        }
        #[inline(always)]
        unsafe fn store_bytes(self, to: *mut i8) {
            unsafe {
                let mut whole = [0i32; LANES];
                _mm256_storeu_si256(whole.as_mut_ptr().cast(), _mm256_cvtps_epi32(self.0));
                _mm256_storeu_si256(whole.as_mut_ptr().add(8).cast(), _mm256_cvtps_epi32(self.1));
                to.cast::<[i8; LANES]>().write_unaligned(whole.map(|v| v as i8));
            }
        }
        #[inline(always)]
        unsafe fn sums(start: i32) -> Self::Sums {
            // Each lane's two partial sums are added at the end: begin one of them.
            unsafe { [_mm256_set1_epi64x(i64::from(start as u32)); 4] }
        }
        #[inline(always)]
        unsafe fn dot(mut sums: Self::Sums, weights: *const u8, quad: *const i8) -> Self::Sums {
            unsafe {
                let quad = _mm_set1_epi32(quad.cast::<i32>().read_unaligned());
                let quad = _mm256_cvtepi8_epi16(quad);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let four = _mm256_cvtepu8_epi16(_mm_loadu_si128(weights.add(16 * i).cast()));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(four, quad));
                }
                sums
            }
        }
        #[inline(always)]
        unsafe fn finish(sums: Self::Sums) -> Self {
            unsafe {
                let pair = |a: __m256i, b: __m256i| {
                    let mixed = _mm256_hadd_epi32(a, b);
                    _mm256_cvtepi32_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(mixed))
                };
                Self(pair(sums[0], sums[1]), pair(sums[2], sums[3]))
            }
        }
        #[inline(always)]
        unsafe fn soon(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }
}
