//! Weights from a checkpoint to device memory, in the form that kernels read.

use engine::Weight;
use runtime::WeightStore;

use crate::device::Device;
use crate::error::Error;
use crate::permute::Permutation;

/// Bytes that are permuted before they are uploaded.
const BAND_BYTES: usize = 16 << 20;

/// Writes `weight` to its allocation at `address`: converted, with its axes in order, zeros behind it.
pub(crate) fn upload(
    device: &mut dyn Device,
    address: u64,
    weight: &Weight,
    store: &WeightStore,
) -> Result<(), Error> {
    let dense = store.dense(&weight.name, &weight.ty)?;
    let permutation = Permutation::new(&weight.ty, &weight.axes);
    if permutation.is_identity() {
        device.upload(address, &dense)?;
    } else {
        let row_bytes = permutation.row_bytes();
        let (n_rows, n_band) = (permutation.n_rows(), (BAND_BYTES / row_bytes).max(1));
        let mut band = vec![0; n_band.min(n_rows) * row_bytes];
        for start in (0..n_rows).step_by(n_band) {
            let rows = start..n_rows.min(start + n_band);
            let band = &mut band[..rows.len() * row_bytes];
            permutation.write(&dense, rows, band);
            device.upload(address + (start * row_bytes) as u64, band)?;
        }
    }
    let n_bytes = dense.len() as u64;
    drop(dense);
    store.release(&weight.name);
    if weight.bytes > n_bytes {
        device.zero(address + n_bytes, weight.bytes - n_bytes)?;
    }
    Ok(())
}
