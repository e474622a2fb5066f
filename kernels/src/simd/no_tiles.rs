//! Tile registers where no CPU has them: nothing here can be reached.

use crate::isa::{Bf16Dot, Bf16Tiles};

use super::TileProduct;

/// As the type of the same name of AMX.
#[derive(Debug)]
pub struct TileSession(Bf16Tiles);

impl TileSession {
    /// Never called: there is no proof.
    pub fn begin(proof: Bf16Tiles) -> Self {
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
    pub unsafe fn multiply_parts(&mut self, _rows: usize, _columns: usize, _product: &TileProduct) {
        unreachable!("this CPU has no tile registers")
    }
}
