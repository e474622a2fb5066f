//! Tile registers where no CPU has them: nothing here can be reached.

use crate::isa::{Bf16Dot, Tiles};

use super::TileProduct;
use super::digits::{DIGITS, DigitProduct, DigitRow, GROUPS, Lines, Scales};

/// As the type of the same name of AMX.
#[derive(Debug)]
pub struct TileSession(Tiles);

impl TileSession {
    /// Never called: there is no proof.
    pub fn begin(proof: Tiles) -> Self {
        Self(proof)
    }

    /// What the session's proof proves besides.
    pub fn dot(&self) -> Bf16Dot {
        self.0.dot()
    }

    /// Never called: there is no session.
    pub fn spin(&mut self, _rounds: usize) {
        unreachable!("this CPU has no tile registers")
    }

    /// Never called: there is no session.
    ///
    /// # Safety
    /// None is needed.
    pub unsafe fn multiply(&mut self, _rows: usize, _columns: usize, _product: &TileProduct) {
        unreachable!("this CPU has no tile registers")
    }

    /// Never called: there is no session.
    ///
    /// # Safety
    /// None is needed.
    pub unsafe fn multiply_digits(&mut self, _product: &DigitProduct) {
        unreachable!("this CPU has no tile registers")
    }
}

/// As the type of the same name of AMX.
#[derive(Clone, Copy, Debug)]
pub struct Splitting(Tiles);

impl Splitting {
    /// Never called: there is no proof.
    pub fn has_low(&self) -> bool {
        unreachable!("this CPU has no tile registers")
    }

    /// Never called: there is no proof.
    pub fn scales(&self) -> Scales {
        unreachable!("this CPU has no tile registers")
    }
}

impl DigitRow {
    /// Never called: there is no proof.
    ///
    /// # Safety
    /// None is needed.
    pub unsafe fn split(&self, _: Tiles) {
        unreachable!("this CPU has no tile registers")
    }
}

impl Lines {
    /// Never called: there is no proof.
    ///
    /// # Safety
    /// None is needed.
    pub unsafe fn splittings(&self, _: Tiles) -> [Splitting; GROUPS] {
        unreachable!("this CPU has no tile registers")
    }

    /// Never called: there is no proof.
    ///
    /// # Safety
    /// None is needed.
    pub unsafe fn split_unit(
        &self,
        _: Tiles,
        _group: usize,
        _splitting: &Splitting,
        _unit: usize,
        _is_low: bool,
        _to: [*mut f32; DIGITS],
    ) {
        unreachable!("this CPU has no tile registers")
    }
}
