//! What normalizes a row of channels whose statistics are known.

use crate::simd::Simd;

/// The numbers of one sample, one for each channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Affine {
    pub(super) center: *const f32,
    pub(super) scale: *const f32,
    pub(super) shift: *const f32,
}

impl Affine {
    /// The numbers from channel `first` on.
    #[inline(always)]
    pub(super) fn skip(self, first: usize) -> Affine {
        let Affine { center, scale, shift } = self;
        let [center, scale, shift] = [center, scale, shift].map(|row| row.wrapping_add(first));
        Affine { center, scale, shift }
    }

    /// The numbers of rows that have `elements` elements, of `n` channels each, one after the other: copies at `to`.
    ///
    /// # Safety
    /// There are numbers of `n` channels; `to` is writable for three times the elements.
    #[inline(always)]
    pub(super) unsafe fn repeated(self, n: usize, elements: usize, to: *mut f32) -> Affine {
        let Affine { center, scale, shift } = self;
        let mut part = 0;
        let [center, scale, shift] = [center, scale, shift].map(|of_row| {
            let to = to.wrapping_add(part * elements);
            part += 1;
            for row in (0..elements).step_by(n) {
                // SAFETY: whole rows of the elements.
                unsafe { std::ptr::copy_nonoverlapping(of_row, to.add(row), n) };
            }
            to.cast_const()
        });
        Affine { center, scale, shift }
    }

    /// `to = (x - center) * scale + shift` for `n` channels.
    ///
    /// # Safety
    /// `x` is readable and `to` writable for `n` values; they are the same or do not overlap.
    #[inline(always)]
    pub(super) unsafe fn apply<S: Simd>(self, s: S, x: *const f32, n: usize, to: *mut f32) {
        let Affine { center, scale, shift } = self;
        let mut i = 0;
        // SAFETY: lanes below n.
        unsafe {
            while i + S::LANES <= n {
                let d = s.sub(s.load(x.add(i)), s.load(center.add(i)));
                s.store(to.add(i), s.mul_add(d, s.load(scale.add(i)), s.load(shift.add(i))));
                i += S::LANES;
            }
            if i < n {
                let rest = n - i;
                let d = s.sub(s.load_n(x.add(i), rest), s.load_n(center.add(i), rest));
                let y = s.mul_add(d, s.load_n(scale.add(i), rest), s.load_n(shift.add(i), rest));
                s.store_n(to.add(i), y, rest);
            }
        }
    }
}
