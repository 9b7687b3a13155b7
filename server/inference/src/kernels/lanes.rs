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
    /// Sixteen 32-bit words: quads of codes, packed scales, or sums of products.
    type Words: Copy;
    /// [`Lanes::add_signed_products`] adds each activation this many times too often.
    const ADDED: i32;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_half(from: *const u16) -> Self;
    /// Upper halves of `f32`, which is what bf16 is.
    unsafe fn load_bf16(from: *const u16) -> Self;
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
    unsafe fn words(from: *const u8) -> Self::Words;
    unsafe fn every_word(value: u32) -> Self::Words;
    /// Sixteen numbers of 16 bits, zeros above.
    unsafe fn shorts(from: *const u16) -> Self::Words;
    unsafe fn and(a: Self::Words, b: Self::Words) -> Self::Words;
    unsafe fn or(a: Self::Words, b: Self::Words) -> Self::Words;
    /// Shifted by less than 32 bits, zeros come in.
    unsafe fn left(words: Self::Words, by: u32) -> Self::Words;
    unsafe fn right(words: Self::Words, by: u32) -> Self::Words;
    /// The highest bytes of the words as signed numbers.
    unsafe fn high_bytes(words: Self::Words) -> Self;
    /// Words as signed numbers, for magnitudes up to 2²⁴.
    unsafe fn numbers(words: Self::Words) -> Self;
    /// Adds the products of sixteen quads of codes below 64 and one quad of signed activations.
    unsafe fn add_products(sums: Self::Words, codes: Self::Words, quad: *const i8) -> Self::Words;
    /// What a table has for each byte, all below 16, in the form that [`Lanes::add_signed_products`] takes. The table has no
    /// -128.
    unsafe fn look_up(table: &'static [i8; 16], codes: Self::Words) -> Self::Words;
    /// Adds the products of sixteen quads of looked-up numbers and one quad of activations in -127..=127, and
    /// [`Lanes::ADDED`] times these.
    unsafe fn add_signed_products(sums: Self::Words, numbers: Self::Words, quad: *const i8) -> Self::Words;
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
    type Words = [u32; LANES];
    const ADDED: i32 = 0;

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
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Plain(bits.map(|b| f32::from_bits(u32::from(b) << 16)))
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
    #[inline(always)]
    unsafe fn words(from: *const u8) -> Self::Words {
        // SAFETY: the caller's promise: 64 bytes.
        unsafe { from.cast::<[[u8; 4]; LANES]>().read_unaligned().map(u32::from_le_bytes) }
    }
    #[inline(always)]
    unsafe fn every_word(value: u32) -> Self::Words {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn shorts(from: *const u16) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u16; LANES]>().read_unaligned().map(u32::from) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::Words, b: Self::Words) -> Self::Words {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: Self::Words, b: Self::Words) -> Self::Words {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn left(words: Self::Words, by: u32) -> Self::Words {
        words.map(|w| w << by)
    }
    #[inline(always)]
    unsafe fn right(words: Self::Words, by: u32) -> Self::Words {
        words.map(|w| w >> by)
    }
    #[inline(always)]
    unsafe fn high_bytes(words: Self::Words) -> Self {
        Plain(words.map(|w| f32::from((w >> 24) as u8 as i8)))
    }
    #[inline(always)]
    unsafe fn numbers(words: Self::Words) -> Self {
        Plain(words.map(|w| w as i32 as f32))
    }
    #[inline(always)]
    unsafe fn add_products(mut sums: Self::Words, codes: Self::Words, quad: *const i8) -> Self::Words {
        // SAFETY: the caller's promise: 4 bytes.
        let quad = unsafe { quad.cast::<[i8; 4]>().read_unaligned() };
        for (sum, codes) in sums.iter_mut().zip(codes) {
            for (code, x) in codes.to_le_bytes().into_iter().zip(quad) {
                *sum = sum.wrapping_add_signed(i32::from(code) * i32::from(x));
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn look_up(table: &'static [i8; 16], codes: Self::Words) -> Self::Words {
        codes.map(|w| u32::from_le_bytes(w.to_le_bytes().map(|code| table[usize::from(code & 15)] as u8)))
    }
    #[inline(always)]
    unsafe fn add_signed_products(mut sums: Self::Words, numbers: Self::Words, quad: *const i8) -> Self::Words {
        // SAFETY: the caller's promise: 4 bytes.
        let quad = unsafe { quad.cast::<[i8; 4]>().read_unaligned() };
        for (sum, numbers) in sums.iter_mut().zip(numbers) {
            for (number, x) in numbers.to_le_bytes().into_iter().zip(quad) {
                *sum = sum.wrapping_add_signed(i32::from(number as i8) * i32::from(x));
            }
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86;
