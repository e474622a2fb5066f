//! The layers that models share. Each is written here and nowhere else.
//!
//! A layer is a function on the [`Net`] of its module: `net.at("mlp", |net| mlp(net, x, hidden))`
//! reads the parameters `mlp.fc1.weight` and so on. Linear layers take their operand along the last
//! axis, whatever its rank. Video tokens are `[rows, frames, tokens, width]` throughout.

use ops::{DType, Error, ValueId};

use crate::net::{Net, Value};
use crate::sincos;

/// Epsilon of every layer norm and RMS norm of `STDiT`.
pub const NORM_EPS: f64 = 1e-6;
/// Width of the sinusoid that timesteps and sizes are embedded in.
pub const SINUSOID_WIDTH: usize = 256;

/// `x W^T + b` with the module `name`: `weight [out, in]`, `bias [out]`.
pub fn linear(net: &mut Net<'_>, name: &str, x: ValueId, out: usize) -> Value {
    net.at(name, |net| {
        let weight = net.weight("weight", &[out, net.width(x)])?;
        let bias = net.weight("bias", &[out])?;
        net.linear(x, weight, Some(bias))
    })
}

/// `x W^T` with the module `name`: `weight [out, in]`.
pub fn linear_no_bias(net: &mut Net<'_>, name: &str, x: ValueId, out: usize) -> Value {
    net.at(name, |net| {
        let weight = net.weight("weight", &[out, net.width(x)])?;
        net.linear(x, weight, None)
    })
}

/// RMS norm over the last axis, times the parameter `name` of that width, in the type of `x`.
pub fn rms_norm(net: &mut Net<'_>, name: &str, x: ValueId, eps: f64) -> Value {
    net.at(name, |net| {
        let width = net.width(x);
        let weight = net.weight("weight", &[width])?;
        let normed = net.rms_norm(x, eps)?;
        let mut dims = vec![1; net.shape(x).len()];
        dims[net.shape(x).len() - 1] = width;
        let weight = net.reshape(weight, &dims)?;
        let weight = net.cast_to(weight, net.ty(x).dtype())?;
        net.mul(normed, weight)
    })
}

/// `fc2(gelu(fc1(x)))`, GELU in its tanh form; `x` keeps its width.
pub fn mlp(net: &mut Net<'_>, x: ValueId, hidden: usize) -> Value {
    let out = net.width(x);
    projection(net, x, hidden, out)
}

/// The caption embedder's projection: raw captions `[rows, 1, tokens, channels]` to
/// `[rows, 1, tokens, width]`.
pub fn caption_embedder(net: &mut Net<'_>, caption: ValueId, width: usize) -> Value {
    net.at("y_proj", |net| projection(net, caption, width, width))
}

fn projection(net: &mut Net<'_>, x: ValueId, hidden: usize, out: usize) -> Value {
    let x = linear(net, "fc1", x, hidden)?;
    let x = net.gelu_tanh(x)?;
    linear(net, "fc2", x, out)
}

/// Captions `[rows, 1, tokens, channels]` followed by as many null captions: the first `tokens` rows
/// of the parameter `y_embedding [max_tokens, channels]`.
pub fn append_null_captions(net: &mut Net<'_>, caption: ValueId, max_tokens: usize) -> Value {
    let shape = net.shape(caption).to_vec();
    let (tokens, channels) = (shape[2], shape[3]);
    let null = net.weight("y_embedding", &[max_tokens, channels])?;
    let null = net.slice_axis(null, 0, 0, tokens)?;
    let null = net.reshape(null, &[1, 1, tokens, channels])?;
    let null = net.broadcast(null, &shape)?;
    net.concat(&[caption, null], 0)
}

/// `[cos a, sin a]` of `a = x f`, for `x` f32 `[rows]`: `[rows, 2 * half]` in the storage type. As
/// upstream, `x` is rounded to the storage type first: in bf16 timestep 999 counts as 1000.
pub fn sinusoid(net: &mut Net<'_>, x: ValueId, half: usize) -> Value {
    let rows = net.shape(x)[0];
    let x = net.stored(x)?;
    let x = net.cast_to(x, DType::F32)?;
    let x = net.reshape(x, &[rows, 1])?;
    let frequencies = sincos::timestep_frequencies(half)?;
    let frequencies = net.constant(frequencies);
    let angles = net.mul(x, frequencies)?;
    let (cos, sin) = (net.cos(angles)?, net.sin(angles)?);
    let embedding = net.concat(&[cos, sin], 1)?;
    net.stored(embedding)
}

/// Timesteps f32 `[rows]` to `[rows, width]`.
pub fn timestep_embedder(net: &mut Net<'_>, timestep: ValueId, width: usize) -> Value {
    let x = sinusoid(net, timestep, SINUSOID_WIDTH / 2)?;
    net.at("mlp", |net| {
        let x = linear(net, "0", x, width)?;
        let x = net.silu(x)?;
        linear(net, "2", x, width)
    })
}

/// Embeds each of `sizes` (f32 `[rows]`) by the same network, side by side:
/// `[rows, sizes * width]`.
pub fn size_embedder(net: &mut Net<'_>, sizes: &[ValueId], width: usize) -> Value {
    let rows = net.shape(sizes[0])[0];
    let mut columns = Vec::with_capacity(sizes.len());
    for &size in sizes {
        columns.push(net.reshape(size, &[rows, 1])?);
    }
    let flat = if let [column] = columns[..] { column } else { net.concat(&columns, 1)? };
    let flat = net.reshape(flat, &[rows * sizes.len()])?;
    let embedded = timestep_embedder(net, flat, width)?;
    net.reshape(embedded, &[rows, sizes.len() * width])
}

/// `linear(silu(x))` with the linear layer `name`: turns an embedding into modulation rows.
pub fn silu_linear(net: &mut Net<'_>, name: &str, x: ValueId, out: usize) -> Value {
    let x = net.silu(x)?;
    linear(net, name, x, out)
}

/// Repeats the rows (axis 0) of `x` as a block until there are `rows`. One row is left to
/// broadcasting.
pub fn tile_rows(net: &mut Net<'_>, x: ValueId, rows: usize) -> Value {
    let have = net.shape(x)[0];
    if have == rows || have == 1 { Ok(x) } else { net.concat(&vec![x; rows / have], 0) }
}

/// Rows broadcast in full.
pub fn all_rows(net: &mut Net<'_>, x: ValueId, rows: usize) -> Value {
    let x = tile_rows(net, x, rows)?;
    let mut shape = net.shape(x).to_vec();
    shape[0] = rows;
    net.broadcast(x, &shape)
}

/// Non-overlapping patches: video `[rows, channels, T, H, W]`, zero-padded at the high side, to
/// `[rows, frames, tokens, width]`. The convolution of upstream is a linear layer, its stride being
/// its kernel: `proj.weight [width, channels, pt, ph, pw]`.
pub fn patch_embed(net: &mut Net<'_>, x: ValueId, patch: [usize; 3], width: usize) -> Value {
    let [rows, channels, t, h, w] = dims(net, x);
    let [pt, ph, pw] = patch;
    let [frames, high, wide] = token_grid([t, h, w], patch);
    let missing = [0, 0, frames * pt - t, high * ph - h, wide * pw - w];
    let x = if missing == [0; 5] { x } else { net.pad(x, &[0; 5], &missing)? };
    let x = net.reshape(x, &[rows, channels, frames, pt, high, ph, wide, pw])?;
    let x = net.permute(x, &[0, 2, 4, 6, 1, 3, 5, 7])?;
    let inner = channels * pt * ph * pw;
    let x = net.reshape(x, &[rows, frames, high * wide, inner])?;
    net.at("proj", |net| {
        let weight = net.weight("weight", &[width, channels, pt, ph, pw])?;
        let weight = net.reshape(weight, &[width, inner])?;
        let bias = net.weight("bias", &[width])?;
        net.linear(x, weight, Some(bias))
    })
}

/// Patches `[rows, frames, tokens, pt * ph * pw * channels]` back to video
/// `[rows, channels, T, H, W]`, cut to `latent` (T, H, W).
pub fn unpatchify(net: &mut Net<'_>, x: ValueId, latent: [usize; 3], patch: [usize; 3]) -> Value {
    let [pt, ph, pw] = patch;
    let [frames, high, wide] = token_grid(latent, patch);
    let rows = net.shape(x)[0];
    let channels = net.width(x) / (pt * ph * pw);
    let x = net.reshape(x, &[rows, frames, high, wide, pt, ph, pw, channels])?;
    let x = net.permute(x, &[0, 7, 1, 4, 2, 5, 3, 6])?;
    let mut x = net.reshape(x, &[rows, channels, frames * pt, high * ph, wide * pw])?;
    for (i, dim) in latent.into_iter().enumerate() {
        if net.shape(x)[i + 2] != dim {
            x = net.slice_axis(x, i + 2, 0, dim)?;
        }
    }
    Ok(x)
}

/// Patches along each axis of a latent; the last one may be partly padding.
pub fn token_grid(latent: [usize; 3], patch: [usize; 3]) -> [usize; 3] {
    std::array::from_fn(|i| latent[i].div_ceil(patch[i]))
}

/// `x (1 + scale) + shift`.
pub fn modulate(net: &mut Net<'_>, x: ValueId, shift: ValueId, scale: ValueId) -> Value {
    let scale = net.add_scalar(scale, 1.0)?;
    let x = net.mul(x, scale)?;
    net.add(x, shift)
}

/// `modulate(layer_norm(x))`.
pub fn modulated_norm(net: &mut Net<'_>, x: ValueId, shift: ValueId, scale: ValueId) -> Value {
    let x = net.layer_norm(x, NORM_EPS)?;
    modulate(net, x, shift, scale)
}

/// The rows of an adaptive-norm table: parameter `name [count, width]` plus `condition`
/// (`[rows, count * width]`, or `[rows, width]` which is added to every row of the table). Each is
/// `[rows, 1, 1, width]`.
pub fn modulation(
    net: &mut Net<'_>,
    name: &str,
    count: usize,
    width: usize,
    conditions: &[ValueId],
) -> Result<Vec<Vec<ValueId>>, Error> {
    let table = net.weight(name, &[count, width])?;
    let table = net.reshape(table, &[1, count, width])?;
    let mut all = Vec::with_capacity(conditions.len());
    for &condition in conditions {
        let rows = net.shape(condition)[0];
        let per_row = net.width(condition) / width;
        let condition = net.reshape(condition, &[rows, per_row, width])?;
        let sum = net.add(table, condition)?;
        let mut parts = Vec::with_capacity(count);
        for i in 0..count {
            let part = net.slice_axis(sum, 1, i, i + 1)?;
            parts.push(net.reshape(part, &[rows, 1, 1, width])?);
        }
        all.push(parts);
    }
    Ok(all)
}

/// Per frame, `noisy` where `frame_mask` (bool `[rows, frames]`), else `clean`; both broadcast.
pub fn select_frames(
    net: &mut Net<'_>,
    frame_mask: ValueId,
    noisy: ValueId,
    clean: ValueId,
) -> Value {
    let [rows, frames] = dims(net, frame_mask);
    let mask = net.reshape(frame_mask, &[rows, frames, 1, 1])?;
    net.select(mask, noisy, clean)
}

/// Which axis of the tokens attends to itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// Tokens of one frame.
    Space,
    /// Frames at one place.
    Time,
}

/// Per-head RMS norm of queries and keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QkNorm {
    /// None.
    Off,
    /// After rotation: 1.1.
    AfterRope,
    /// Before rotation: 1.2.
    BeforeRope,
}

/// The fixed part of a self attention.
#[derive(Clone, Copy, Debug)]
pub struct SelfAttention {
    /// Which axis attends to itself.
    pub over: Over,
    /// Number of heads.
    pub heads: usize,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// Rotation angles `[frames, head width / 2]`, if queries and keys are rotated.
    pub angles: Option<ValueId>,
}

/// Self attention on `[rows, frames, tokens, width]` over one of its axes.
pub fn self_attention(net: &mut Net<'_>, x: ValueId, how: &SelfAttention) -> Value {
    let [rows, frames, tokens, width] = dims(net, x);
    let head = width / how.heads;
    let qkv = linear(net, "qkv", x, 3 * width)?;
    let qkv = net.reshape(qkv, &[rows, frames, tokens, 3, how.heads, head])?;
    let mut parts = [qkv; 3];
    for (i, part) in parts.iter_mut().enumerate() {
        let sliced = net.slice_axis(qkv, 3, i, i + 1)?;
        *part = net.reshape(sliced, &[rows, frames, tokens, how.heads, head])?;
        if how.over == Over::Time {
            *part = net.permute(*part, &[0, 2, 1, 3, 4])?;
        }
    }
    let [q, k, v] = parts;
    let q = norm_and_rotate(net, "q_norm", q, how)?;
    let k = norm_and_rotate(net, "k_norm", k, how)?;
    let x = net.attention([q, k, v], None, None, (head as f64).powf(-0.5))?;
    let x = if how.over == Over::Time { net.permute(x, &[0, 2, 1, 3, 4])? } else { x };
    let x = net.reshape(x, &[rows, frames, tokens, width])?;
    linear(net, "proj", x, width)
}

fn norm_and_rotate(net: &mut Net<'_>, norm: &str, x: ValueId, how: &SelfAttention) -> Value {
    let mut x = x;
    if how.qk_norm == QkNorm::BeforeRope {
        x = rms_norm(net, norm, x, NORM_EPS)?;
    }
    if let Some(angles) = how.angles {
        x = net.rope(x, angles)?;
    }
    if how.qk_norm == QkNorm::AfterRope {
        x = rms_norm(net, norm, x, NORM_EPS)?;
    }
    Ok(x)
}

/// Rotation angles, f32 `[frames, head width / 2]`: frame number times the parameter `rope.freqs`,
/// rounded to the storage type as upstream's are.
pub fn rope_angles(net: &mut Net<'_>, frames: usize, head: usize) -> Value {
    net.at("rope", |net| {
        let frequencies = net.weight("freqs", &[head / 2])?;
        let frequencies = net.reshape(frequencies, &[1, head / 2])?;
        let positions = sincos::positions(frames, net.dtype())?;
        let positions = net.constant(positions);
        let angles = net.mul(positions, frequencies)?;
        net.cast_to(angles, DType::F32)
    })
}

/// A caption as the blocks read it.
#[derive(Clone, Copy, Debug)]
pub struct Caption {
    /// Projected features `[rows, tokens, width]`.
    pub tokens: ValueId,
    /// bool `[rows, tokens]`: which of them are attended to. The same as upstream's packing of the
    /// valid tokens of all samples into one sequence.
    pub mask: Option<ValueId>,
}

/// Attention of video tokens `[rows, frames, tokens, width]` to the caption of their row.
pub fn cross_attention(net: &mut Net<'_>, x: ValueId, caption: &Caption, heads: usize) -> Value {
    let [rows, frames, tokens, width] = dims(net, x);
    let words = net.shape(caption.tokens)[1];
    let head = width / heads;
    let q = linear(net, "q_linear", x, width)?;
    let q = net.reshape(q, &[rows, frames * tokens, heads, head])?;
    let kv = linear(net, "kv_linear", caption.tokens, 2 * width)?;
    let kv = net.reshape(kv, &[rows, words, 2, heads, head])?;
    let k = net.slice_axis(kv, 2, 0, 1)?;
    let k = net.reshape(k, &[rows, words, heads, head])?;
    let v = net.slice_axis(kv, 2, 1, 2)?;
    let v = net.reshape(v, &[rows, words, heads, head])?;
    let x = net.attention([q, k, v], None, caption.mask, (head as f64).powf(-0.5))?;
    let x = net.reshape(x, &[rows, frames, tokens, width])?;
    linear(net, "proj", x, width)
}

/// What conditions a block: once for noisy frames, and, if some frames may be clean, for those.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// For noisy frames, `[rows or 1, ...]`.
    pub noisy: ValueId,
    /// For clean frames, in the same shape, and bool `[rows or 1, frames]`: true where noisy.
    pub clean: Option<Clean>,
}

/// The clean half of a [`Condition`].
#[derive(Clone, Copy, Debug)]
pub struct Clean {
    /// What conditions clean frames.
    pub value: ValueId,
    /// bool `[rows or 1, frames]`: true where the frame is noisy.
    pub frame_mask: ValueId,
}

/// The modulation rows of a block, chosen per frame.
#[derive(Clone, Debug)]
pub struct Modulation {
    /// Per frame: `[rows or 1, frames or 1, 1, width]`.
    pub chosen: Vec<ValueId>,
    /// As if every frame were noisy: `[rows or 1, 1, 1, width]`.
    pub noisy: Vec<ValueId>,
}

/// [`modulation`] for a condition that may have a clean half.
pub fn frame_modulation(
    net: &mut Net<'_>,
    name: &str,
    count: usize,
    width: usize,
    condition: &Condition,
) -> Result<Modulation, Error> {
    let mut conditions = vec![condition.noisy];
    conditions.extend(condition.clean.map(|clean| clean.value));
    let mut all = modulation(net, name, count, width, &conditions)?;
    let noisy = all.remove(0);
    let mut chosen = noisy.clone();
    if let (Some(clean), Some(values)) = (condition.clean, all.pop()) {
        for (chosen, value) in chosen.iter_mut().zip(values) {
            *chosen = select_frames(net, clean.frame_mask, *chosen, value)?;
        }
    }
    Ok(Modulation { chosen, noisy })
}

/// `x + gate y`.
pub fn add_gated(net: &mut Net<'_>, x: ValueId, gate: ValueId, y: ValueId) -> Value {
    let y = net.mul(gate, y)?;
    net.add(x, y)
}

/// The final layer: modulated norm and a linear layer to `out` values a token. As upstream, the
/// result for clean frames starts from what is already modulated as if noisy.
pub fn final_layer(net: &mut Net<'_>, x: ValueId, condition: &Condition, out: usize) -> Value {
    let width = net.width(x);
    let mut conditions = vec![condition.noisy];
    conditions.extend(condition.clean.map(|clean| clean.value));
    let parts = modulation(net, "scale_shift_table", 2, width, &conditions)?;
    let mut y = modulated_norm(net, x, parts[0][0], parts[0][1])?;
    if let Some(clean) = condition.clean {
        let again = modulated_norm(net, y, parts[1][0], parts[1][1])?;
        y = select_frames(net, clean.frame_mask, y, again)?;
    }
    linear(net, "linear", y, out)
}

/// The dims of `x`, whose rank the caller knows.
pub fn dims<const N: usize>(net: &Net<'_>, x: ValueId) -> [usize; N] {
    net.shape(x).try_into().expect("the layer's documentation states the rank")
}
