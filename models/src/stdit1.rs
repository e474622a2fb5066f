//! `STDiT`, Open-Sora 1.0: each block attends over space, then over time, then to the caption.
//!
//! `x_mask` is the image-condition extension of later tags, which 1.0 itself does not have.

use ops::{Builder, Graph, ValueId};

use crate::Error;
use crate::bucket::{Bucket, Inputs, video_out};
use crate::config::{Stdit, Stdit1};
use crate::net::{Net, Value, param_shapes};
use crate::nn::{self, Caption, Condition, Over, QkNorm, SelfAttention};
use crate::sincos::{self, Grid};

const MODEL: &str = "STDiT";

/// The whole model as a graph with one output, f32 `[rows, channels, T, H, W]`.
pub fn graph(config: &Stdit1, bucket: &Bucket) -> Result<Graph, Error> {
    bucket.check(MODEL, &config.common)?;
    let mut b = Builder::new("stdit1");
    let inputs = Inputs::declare(&mut b, &config.common, bucket, false)?;
    let out = forward(&mut b, config, bucket, &inputs)?;
    Ok(b.finish(&[out]))
}

/// Names and shapes of the parameters that sampling needs.
pub fn params(config: &Stdit1) -> Result<Vec<(String, Vec<usize>)>, Error> {
    Ok(param_shapes(&graph(config, &config.common.smallest_bucket())?))
}

/// Appends the model to `b`.
pub fn forward(
    b: &mut Builder,
    config: &Stdit1,
    bucket: &Bucket,
    inputs: &Inputs,
) -> Result<ValueId, Error> {
    let common = &config.common;
    bucket.check(MODEL, common)?;
    inputs.check(b, MODEL, common, bucket)?;
    let width = common.hidden_size;
    let net = &mut Net::new(b, bucket.dtype);

    let x = net.stored(inputs.x)?;
    let x = net.at("x_embedder", |net| nn::patch_embed(net, x, common.patch_size, width))?;
    let positions = net.at("pos_embed", |net| spatial_positions(net, config, bucket))?;
    let x = net.add(x, positions)?;
    let mut x = nn::all_rows(net, x, bucket.rows())?;

    let timestep = inputs.timestep_rows(net, width)?;
    let rows6 = net.at("t_block", |net| nn::silu_linear(net, "1", timestep, 6 * width))?;
    let timestep = inputs.split_condition(net, bucket, timestep, 1)?;
    let condition = inputs.split_condition(net, bucket, rows6, 1)?;
    let caption = inputs.caption(net, common, bucket)?;

    for i in 0..common.depth {
        let first = i == 0;
        x = net.at(&format!("blocks.{i}"), |net| {
            let frames = if first { Some(temporal_positions(net, config, bucket)?) } else { None };
            block(net, common, x, &caption, &condition, frames)
        })?;
    }
    let out = common.patch_values();
    let x = net.at("final_layer", |net| nn::final_layer(net, x, &timestep, out))?;
    Ok(video_out(net, x, common, bucket)?)
}

/// One block. `frame_positions` are added to what the temporal attention reads, in block 0.
fn block(
    net: &mut Net<'_>,
    config: &Stdit,
    x: ValueId,
    caption: &Caption,
    condition: &Condition,
    frame_positions: Option<ValueId>,
) -> Value {
    let attention =
        |over| SelfAttention { over, heads: config.num_heads, qk_norm: QkNorm::Off, angles: None };
    let rows = nn::frame_modulation(net, "scale_shift_table", 6, config.hidden_size, condition)?;
    let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] = rows.chosen[..] else {
        unreachable!("six rows were asked for");
    };

    let y = nn::modulated_norm(net, x, shift_msa, scale_msa)?;
    let y = net.at("attn", |net| nn::self_attention(net, y, &attention(Over::Space)))?;
    let x = nn::add_gated(net, x, gate_msa, y)?;

    // Not normed, not modulated; the spatial gate, and never that of clean frames.
    let y = match frame_positions {
        Some(positions) => net.add(x, positions)?,
        None => x,
    };
    let y = net.at("attn_temp", |net| nn::self_attention(net, y, &attention(Over::Time)))?;
    let x = nn::add_gated(net, x, rows.noisy[2], y)?;

    let y = net.at("cross_attn", |net| nn::cross_attention(net, x, caption, config.num_heads))?;
    let x = net.add(x, y)?;

    let y = nn::modulated_norm(net, x, shift_mlp, scale_mlp)?;
    let y = net.at("mlp", |net| nn::mlp(net, y, config.mlp_hidden()))?;
    nn::add_gated(net, x, gate_mlp, y)
}

/// `[1, 1, tokens, width]`.
fn spatial_positions(net: &mut Net<'_>, config: &Stdit1, bucket: &Bucket) -> Value {
    let common = &config.common;
    let [_, height, width] = nn::token_grid(bucket.latent, common.patch_size);
    let grid = Grid { height, width, scale: config.space_scale, base_size: None };
    let table = sincos::grid_table_f64(&grid, common.hidden_size)?;
    let table = sincos::shaped(&table, &[1, 1, height * width, common.hidden_size], net.dtype())?;
    Ok(net.constant(table))
}

/// `[1, frames, 1, width]`.
fn temporal_positions(net: &mut Net<'_>, config: &Stdit1, bucket: &Bucket) -> Value {
    let common = &config.common;
    let [frames, _, _] = nn::token_grid(bucket.latent, common.patch_size);
    let table = sincos::line_table_f64(frames, config.time_scale, common.hidden_size)?;
    let table = sincos::shaped(&table, &[1, frames, 1, common.hidden_size], net.dtype())?;
    Ok(net.constant(table))
}
