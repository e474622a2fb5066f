//! Weights in the form that kernels read, shared by all sessions of one model.
//!
//! A weight is held once per form: as the file has it where no kernel packs it and the element type
//! is the graph's, else converted or packed, made at first use. Plans for other buckets find the
//! same packed weight again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kernels::{KernelDef, Packing, Pool};
use ops::{DType, TensorType};

use crate::Error;
use crate::arena::Arena;

/// Where weights come from: a checkpoint, or a table in a test.
pub trait WeightSource: Send + Sync {
    /// The dense little-endian bytes of tensor `name` with their type; `None` if there is none.
    /// `Err` says why an existing tensor cannot be read.
    #[expect(clippy::type_complexity, reason = "a named struct would only rename the pair")]
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String>;

    /// Called when `name` has been put into the form that kernels read: the source's own copy need
    /// not stay in memory.
    fn release(&self, name: &str) {
        let _ = name;
    }

    /// Called when `name` will be asked for soon: a slow source can begin to read it.
    fn prefetch(&self, name: &str) {
        let _ = name;
    }
}

/// Bytes of a weight that is not packed that are copied at a time: its source may be a mapped file,
/// whose pages are given back in between.
const COPIED_BYTES: usize = 8 << 20;

/// One weight in one form.
#[derive(Debug)]
pub(crate) struct Weight(Arena);

impl Weight {
    pub(crate) fn ptr(&self) -> *const u8 {
        self.0.ptr()
    }

    /// A copy of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Result<Weight, Error> {
        let mut arena = Arena::new(bytes.len(), "weights")?;
        arena.slice_mut(0, bytes.len()).copy_from_slice(bytes);
        Ok(Weight(arena))
    }
}

/// A weight as the kernel of one step wants it.
pub(crate) struct Form<'a> {
    pub(crate) name: &'a str,
    /// Type the graph declares.
    pub(crate) ty: &'a TensorType,
    pub(crate) packing: Option<&'a Packing>,
    pub(crate) kernel: &'a dyn KernelDef,
    /// Which operand of the kernel it is.
    pub(crate) position: usize,
}

/// The weights of one model, made on demand.
pub struct WeightStore {
    source: Box<dyn WeightSource>,
    held: Mutex<BTreeMap<(String, DType, String), Arc<Weight>>>,
}

impl std::fmt::Debug for WeightStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WeightStore").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl WeightStore {
    /// Weights of `source`; nothing is read yet.
    pub fn new(source: impl WeightSource + 'static) -> WeightStore {
        WeightStore { source: Box::new(source), held: Mutex::default() }
    }

    /// Bytes held: packed and converted weights.
    pub fn bytes(&self) -> usize {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.values().map(|weight| weight.0.len()).sum()
    }

    /// Gives back every weight that no session uses.
    pub fn clear(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, weight| Arc::strong_count(weight) > 1);
    }

    /// Weight `name` as `kernel` wants its operand `position`.
    pub(crate) fn get(
        &self,
        name: &str,
        ty: &TensorType,
        packing: Option<&Packing>,
        kernel: &dyn KernelDef,
        position: usize,
        pool: &Pool,
    ) -> Result<Arc<Weight>, Error> {
        let form = packing.map_or(String::new(), |packing| packing.name.clone());
        let key = (name.to_string(), ty.dtype(), form);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weight) = held.get(&key) {
            return Ok(Arc::clone(weight));
        }
        let bytes = packing.map_or(ty.bytes(), |packing| packing.bytes);
        let mut arena = Arena::new(bytes, "weights")?;
        let form = Form { name, ty, packing, kernel, position };
        self.fill(&form, arena.slice_mut(0, bytes), pool)?;
        let weight = Arc::new(Weight(arena));
        held.insert(key, Arc::clone(&weight));
        Ok(weight)
    }

    /// Says that the bytes of [`WeightStore::dense`] have been put elsewhere.
    pub fn release(&self, name: &str) {
        self.source.release(name);
    }

    /// Says that a weight will be asked for soon.
    pub fn prefetch(&self, name: &str) {
        self.source.prefetch(name);
    }

    /// Bytes that are in memory beside a weight's form while it is made: the source's, and those in
    /// the graph's element type where that is another.
    pub(crate) fn passing_bytes(&self, name: &str, ty: &TensorType, is_packed: bool) -> usize {
        match self.source.tensor(name) {
            Ok(Some((found, _))) if found.dtype() != ty.dtype() => found.bytes() + ty.bytes(),
            // What is missing is found out when it is made.
            _ => least_passing_bytes(ty, is_packed),
        }
    }

    /// Writes a weight in its form to `out`, which is as long as the form.
    pub(crate) fn fill(&self, form: &Form<'_>, out: &mut [u8], pool: &Pool) -> Result<(), Error> {
        let dense = self.dense(form.name, form.ty)?;
        match form.packing {
            None => {
                for (out, dense) in out.chunks_mut(COPIED_BYTES).zip(dense.chunks(COPIED_BYTES)) {
                    out.copy_from_slice(dense);
                    // What was copied need not stay beside its copy; the rest was not read yet.
                    self.source.release(form.name);
                }
            }
            Some(_) => form.kernel.pack(form.position, &dense, out, pool),
        }
        drop(dense);
        self.source.release(form.name);
        Ok(())
    }

    /// The dense little-endian bytes of weight `name` as the graph declares it, converted if the source has
    /// another float type, aligned for its elements. Nothing is kept: it is for who puts them elsewhere.
    ///
    /// # Errors
    /// [`Error::MissingWeight`], [`Error::WeightType`], [`Error::Source`].
    pub fn dense(&self, name: &str, ty: &TensorType) -> Result<Cow<'_, [u8]>, Error> {
        let source = |reason| Error::Source { name: name.to_string(), reason };
        let (found, bytes) = self
            .source
            .tensor(name)
            .map_err(source)?
            .ok_or_else(|| Error::MissingWeight(name.to_string()))?;
        let convertible =
            found.dtype() == ty.dtype() || (found.dtype().is_float() && ty.dtype().is_float());
        if found.shape() != ty.shape() || !convertible || bytes.len() != found.bytes() {
            return Err(Error::WeightType {
                name: name.to_string(),
                found: found.to_string(),
                expected: ty.to_string(),
            });
        }
        if found.dtype() == ty.dtype() && bytes.as_ptr().addr().is_multiple_of(ty.dtype().size()) {
            return Ok(bytes);
        }
        Ok(Cow::Owned(convert(&bytes, found.dtype(), ty.dtype())))
    }
}

/// [`WeightStore::passing_bytes`] of a weight that the source has in the graph's element type.
pub(crate) fn least_passing_bytes(ty: &TensorType, is_packed: bool) -> usize {
    if is_packed { ty.bytes() } else { ty.bytes().min(COPIED_BYTES) }
}

/// Rewrites dense little-endian elements of float type `from` as `to`, rounding to nearest even.
fn convert(bytes: &[u8], from: DType, to: DType) -> Vec<u8> {
    if from == to {
        return bytes.to_vec();
    }
    let mut out = Vec::with_capacity(bytes.len() / from.size() * to.size());
    for chunk in bytes.chunks_exact(from.size()) {
        let x = match (from, chunk) {
            (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (DType::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
            (DType::Bf16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!("`dense` converts between float types only"),
        };
        match to {
            DType::F16 => out.extend(half::f16::from_f32(x).to_le_bytes()),
            DType::Bf16 => out.extend(half::bf16::from_f32(x).to_le_bytes()),
            _ => out.extend(x.to_le_bytes()),
        }
    }
    out
}
