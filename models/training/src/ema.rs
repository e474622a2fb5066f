//! The exponential moving average of the masters, as graph nodes.

use ops::{Builder, Error, ValueId};

/// `decay * ema + (1 - decay) * master`, all f32 in one shape. An average starts as a copy of the master,
/// which is what upstream's first update, with decay 0, makes it.
pub fn append_ema(
    b: &mut Builder,
    ema: ValueId,
    master: ValueId,
    decay: f64,
) -> Result<ValueId, Error> {
    let kept = b.mul_scalar(ema, decay)?;
    let new = b.mul_scalar(master, 1.0 - decay)?;
    b.add(kept, new)
}
