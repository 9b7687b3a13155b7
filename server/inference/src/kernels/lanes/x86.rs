//! The vectors of x86-64.

use super::{LANES, Lanes};
use core::arch::x86_64::*;

/// AVX-512 F, BW and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

// SAFETY (the whole block): the trait's contract: the CPU has the instruction set, pointers are valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx512 {
    type Sums = __m512i;
    type Words = __m512i;
    /// The instruction for products takes unsigned bytes on one side: looked-up numbers have 128 added.
    const ADDED: i32 = 128;

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
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe { Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(Self::shorts(from)))) }
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
    unsafe fn words(from: *const u8) -> Self::Words {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn every_word(value: u32) -> Self::Words {
        unsafe { _mm512_set1_epi32(value as i32) }
    }
    #[inline(always)]
    unsafe fn shorts(from: *const u16) -> Self::Words {
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::Words, b: Self::Words) -> Self::Words {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::Words, b: Self::Words) -> Self::Words {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn left(words: Self::Words, by: u32) -> Self::Words {
        unsafe { _mm512_sll_epi32(words, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    unsafe fn right(words: Self::Words, by: u32) -> Self::Words {
        unsafe { _mm512_srl_epi32(words, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    unsafe fn high_bytes(words: Self::Words) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(words))) }
    }
    #[inline(always)]
    unsafe fn numbers(words: Self::Words) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(words)) }
    }
    #[inline(always)]
    unsafe fn add_products(sums: Self::Words, codes: Self::Words, quad: *const i8) -> Self::Words {
        unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(quad.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn look_up(table: &'static [i8; 16], codes: Self::Words) -> Self::Words {
        unsafe {
            let table = _mm_xor_si128(_mm_loadu_si128(table.as_ptr().cast()), _mm_set1_epi8(-128));
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
        }
    }
    #[inline(always)]
    unsafe fn add_signed_products(sums: Self::Words, numbers: Self::Words, quad: *const i8) -> Self::Words {
        unsafe { Self::add_products(sums, numbers, quad) }
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
    type Words = [__m256i; 2];
    const ADDED: i32 = 0;

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
            Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe {
            let [low, high] = Self::shorts(from);
            let number = |bits: __m256i| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits));
            Self(number(low), number(high))
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
    unsafe fn words(from: *const u8) -> Self::Words {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn every_word(value: u32) -> Self::Words {
        unsafe { [_mm256_set1_epi32(value as i32); 2] }
    }
    #[inline(always)]
    unsafe fn shorts(from: *const u16) -> Self::Words {
        unsafe {
            let eight = |at: *const u16| _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            [eight(from), eight(from.add(8))]
        }
    }
    #[inline(always)]
    unsafe fn and(a: Self::Words, b: Self::Words) -> Self::Words {
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn or(a: Self::Words, b: Self::Words) -> Self::Words {
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn left(words: Self::Words, by: u32) -> Self::Words {
        unsafe {
            let by = _mm_cvtsi32_si128(by as i32);
            [_mm256_sll_epi32(words[0], by), _mm256_sll_epi32(words[1], by)]
        }
    }
    #[inline(always)]
    unsafe fn right(words: Self::Words, by: u32) -> Self::Words {
        unsafe {
            let by = _mm_cvtsi32_si128(by as i32);
            [_mm256_srl_epi32(words[0], by), _mm256_srl_epi32(words[1], by)]
        }
    }
    #[inline(always)]
    unsafe fn high_bytes(words: Self::Words) -> Self {
        unsafe {
            let [low, high] = words;
            let number = |w: __m256i| _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(w));
            Self(number(low), number(high))
        }
    }
    #[inline(always)]
    unsafe fn numbers(words: Self::Words) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(words[0]), _mm256_cvtepi32_ps(words[1])) }
    }
    #[inline(always)]
    unsafe fn add_products(sums: Self::Words, codes: Self::Words, quad: *const i8) -> Self::Words {
        unsafe {
            let quad = _mm256_set1_epi32(quad.cast::<i32>().read_unaligned());
            // Pairs of products fit in 16 bits: 2 · 63 · 128 < 2¹⁵.
            let add = |sum: __m256i, codes: __m256i| {
                let pairs = _mm256_maddubs_epi16(codes, quad);
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            };
            [add(sums[0], codes[0]), add(sums[1], codes[1])]
        }
    }
    #[inline(always)]
    unsafe fn look_up(table: &'static [i8; 16], codes: Self::Words) -> Self::Words {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])]
        }
    }
    #[inline(always)]
    unsafe fn add_signed_products(sums: Self::Words, numbers: Self::Words, quad: *const i8) -> Self::Words {
        unsafe {
            let quad = _mm256_set1_epi32(quad.cast::<i32>().read_unaligned());
            // The signs go to the activations. Pairs of products fit in 16 bits: 2 · 127 · 127 < 2¹⁵.
            let add = |sum: __m256i, numbers: __m256i| {
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(numbers), _mm256_sign_epi8(quad, numbers));
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            };
            [add(sums[0], numbers[0]), add(sums[1], numbers[1])]
        }
    }
    #[inline(always)]
    unsafe fn soon(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
