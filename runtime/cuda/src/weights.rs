//! Weights from a checkpoint to device memory, in the form that kernels read.
//!
//! One thread reads and converts, ahead of the other, which uploads; the device copies while both go on.

use std::borrow::Cow;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use engine::Weight;
use runtime::WeightStore;

use crate::device::Device;
use crate::error::Error;
use crate::permute::Permutation;

/// Bytes that are permuted before they are uploaded.
const BAND_BYTES: usize = 16 << 20;
/// Parts of weights that may wait for their upload: what was read does not pile up.
const WAITING: usize = 2;
/// Weights that the source is told of before they are read: enough to keep a disk busy.
const PREFETCHED: usize = 3;

/// Bytes that are ready for the device.
struct Part<'a> {
    address: u64,
    bytes: Cow<'a, [u8]>,
    /// The weight that ends with this part.
    ends: Option<&'a Weight>,
}

/// Writes each weight to its allocation: converted, with its axes in order, zeros behind it.
///
/// # Errors
/// [`Error::Weights`], or what the device says.
pub(crate) fn upload(
    device: &mut dyn Device,
    weights: &[(u64, &Weight)],
    store: &WeightStore,
) -> Result<(), Error> {
    thread::scope(|scope| {
        let (ready, parts) = sync_channel(WAITING);
        let reader = scope.spawn(move || read(weights, store, &ready));
        for Part { address, bytes, ends } in parts {
            device.upload(address, &bytes)?;
            let end = address + bytes.len() as u64;
            drop(bytes);
            if let Some(weight) = ends {
                store.release(&weight.name);
                let n_zeros = weight.bytes - weight.ty.bytes() as u64;
                if n_zeros > 0 {
                    device.zero(end, n_zeros)?;
                }
            }
        }
        reader.join().expect("the reader does not panic")
    })
}

/// Sends all weights, part by part, until nobody takes them any more.
fn read<'a>(
    weights: &[(u64, &'a Weight)],
    store: &'a WeightStore,
    ready: &SyncSender<Part<'a>>,
) -> Result<(), Error> {
    for (number, &(address, weight)) in weights.iter().enumerate() {
        // All that are ahead before the first, then one more with each.
        let from = if number == 0 { 0 } else { number + PREFETCHED };
        let ahead = weights.iter().take(number + PREFETCHED + 1).skip(from);
        ahead.for_each(|(_, weight)| store.prefetch(&weight.name));
        let dense = store.dense(&weight.name, &weight.ty)?;
        let permutation = Permutation::new(&weight.ty, &weight.axes);
        if permutation.is_identity() {
            let part = Part { address, bytes: dense, ends: Some(weight) };
            if ready.send(part).is_err() {
                return Ok(());
            }
            continue;
        }
        let row_bytes = permutation.row_bytes();
        let (n_rows, n_band) = (permutation.n_rows(), (BAND_BYTES / row_bytes).max(1));
        for start in (0..n_rows).step_by(n_band) {
            let rows = start..n_rows.min(start + n_band);
            let ends = (rows.end == n_rows).then_some(weight);
            let mut band = vec![0; rows.len() * row_bytes];
            permutation.write(&dense, rows, &mut band);
            let address = address + (start * row_bytes) as u64;
            if ready.send(Part { address, bytes: Cow::Owned(band), ends }).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
