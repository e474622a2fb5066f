//! `STDiT-2`, Open-Sora 1.1: any size and length, conditioned on them; rotary positions in time.

use ops::{Builder, Graph, ValueId};

use crate::Error;
use crate::bucket::{Bucket, Inputs, video_out};
use crate::config::{Stdit, Stdit2};
use crate::net::{Net, Value, param_shapes};
use crate::nn::{self, Caption, Condition, Over, SelfAttention};
use crate::sincos::{self, Grid};

const MODEL: &str = "STDiT2";

/// The whole model as a graph with one output, f32 `[rows, channels, T, H, W]`.
pub fn graph(config: &Stdit2, bucket: &Bucket) -> Result<Graph, Error> {
    bucket.check(MODEL, &config.common)?;
    let mut b = Builder::new("stdit2");
    let inputs = Inputs::declare(&mut b, &config.common, bucket, true)?;
    let out = forward(&mut b, config, bucket, &inputs)?;
    Ok(b.finish(&[out]))
}

/// Names and shapes of the parameters that sampling needs.
pub fn params(config: &Stdit2) -> Result<Vec<(String, Vec<usize>)>, Error> {
    Ok(param_shapes(&graph(config, &config.common.smallest_bucket())?))
}

/// What conditions the blocks: for space and MLP (6 rows), for time (3), and for the final layer.
struct Conditions {
    space: Condition,
    time: Condition,
    last: Condition,
}

/// Appends the model to `b`.
pub fn forward(
    b: &mut Builder,
    config: &Stdit2,
    bucket: &Bucket,
    inputs: &Inputs,
) -> Result<ValueId, Error> {
    let common = &config.common;
    bucket.check(MODEL, common)?;
    inputs.check(b, MODEL, common, bucket)?;
    let width = common.hidden_size;
    let [frames, _, _] = nn::token_grid(bucket.latent, common.patch_size);
    let net = &mut Net::new(b, bucket.dtype);

    let x = net.stored(inputs.x)?;
    let x = net.at("x_embedder", |net| nn::patch_embed(net, x, common.patch_size, width))?;
    let positions = net.at("pos_embed", |net| spatial_positions(net, config, bucket))?;
    let x = net.add(x, positions)?;
    let mut x = nn::all_rows(net, x, bucket.rows())?;

    let conditions = conditions(net, config, bucket, inputs)?;
    let caption = inputs.caption(net, common, bucket)?;
    let angles = nn::rope_angles(net, frames, common.head_width())?;

    for i in 0..common.depth {
        x = net.at(&format!("blocks.{i}"), |net| {
            block(net, config, x, &caption, &conditions, angles)
        })?;
    }
    let out = common.patch_values();
    let x = net.at("final_layer", |net| nn::final_layer(net, x, &conditions.last, out))?;
    Ok(video_out(net, x, common, bucket)?)
}

/// Embeds timestep and sizes. Rows for clean frames (timestep 0) go through the same networks in
/// the same call, below the others.
fn conditions(
    net: &mut Net<'_>,
    config: &Stdit2,
    bucket: &Bucket,
    inputs: &Inputs,
) -> Result<Conditions, Error> {
    let width = config.common.hidden_size;
    let Some(sizes) = inputs.sizes else {
        return Err(Error::Bucket { model: MODEL, reason: "the call has no sizes".into() });
    };
    let timestep = inputs.timestep_rows(net, width)?;

    let pixels = [sizes.height, sizes.width];
    let pixels = net.at("csize_embedder", |net| nn::size_embedder(net, &pixels, width / 3))?;
    let ar = net.at("ar_embedder", |net| nn::size_embedder(net, &[sizes.ar], width / 3))?;
    let space = net.concat(&[pixels, ar], 1)?;
    let length = net.at("fl_embedder", |net| nn::size_embedder(net, &[sizes.num_frames], width))?;
    let fps = net.at("fps_embedder", |net| nn::size_embedder(net, &[sizes.fps], width))?;
    let time = net.add(length, fps)?;

    // [timesteps + sizes; 0 + sizes], in as few rows as tell all apart.
    let noisy_rows = bucket.latents.max(bucket.conditions);
    let with_sizes = |net: &mut Net<'_>, sizes: ValueId| -> Value {
        let noisy = net.slice_axis(timestep, 0, 0, bucket.latents)?;
        let noisy = nn::tile_rows(net, noisy, noisy_rows)?;
        let tiled = nn::tile_rows(net, sizes, noisy_rows)?;
        let noisy = net.add(noisy, tiled)?;
        if inputs.frame_mask.is_none() {
            return Ok(noisy);
        }
        let clean = net.slice_axis(timestep, 0, bucket.latents, bucket.latents + 1)?;
        let clean = net.add(clean, sizes)?;
        net.concat(&[noisy, clean], 0)
    };
    let space = with_sizes(net, space)?;
    let time = with_sizes(net, time)?;
    let rows6 = net.at("t_block", |net| nn::silu_linear(net, "1", space, 6 * width))?;
    let rows3 = net.at("t_block_temp", |net| nn::silu_linear(net, "1", time, 3 * width))?;

    // The final layer sees the timestep alone in noisy frames, and the sizes too in clean ones.
    let mut last = inputs.split_condition(net, bucket, timestep, 1)?;
    if let Some(clean) = &mut last.clean {
        let rows = net.shape(space)[0];
        let value = net.slice_axis(space, 0, rows - bucket.conditions, rows)?;
        clean.value = nn::tile_rows(net, value, bucket.rows())?;
    }
    Ok(Conditions {
        space: inputs.split_condition(net, bucket, rows6, bucket.conditions)?,
        time: inputs.split_condition(net, bucket, rows3, bucket.conditions)?,
        last,
    })
}

/// One block.
fn block(
    net: &mut Net<'_>,
    config: &Stdit2,
    x: ValueId,
    caption: &Caption,
    conditions: &Conditions,
    angles: ValueId,
) -> Value {
    let Stdit { hidden_size: width, num_heads: heads, .. } = config.common;
    let attention = |over, angles| SelfAttention { over, heads, qk_norm: config.qk_norm(), angles };
    let rows = nn::frame_modulation(net, "scale_shift_table", 6, width, &conditions.space)?;
    let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] = rows.chosen[..] else {
        unreachable!("six rows were asked for");
    };
    let rows = nn::frame_modulation(net, "scale_shift_table_temporal", 3, width, &conditions.time)?;
    let [shift_time, scale_time, gate_time] = rows.chosen[..] else {
        unreachable!("three rows were asked for");
    };

    let y = nn::modulated_norm(net, x, shift_msa, scale_msa)?;
    let y = net.at("attn", |net| nn::self_attention(net, y, &attention(Over::Space, None)))?;
    let x = nn::add_gated(net, x, gate_msa, y)?;

    let y = nn::modulated_norm(net, x, shift_time, scale_time)?;
    let over_time = attention(Over::Time, Some(angles));
    let y = net.at("attn_temp", |net| nn::self_attention(net, y, &over_time))?;
    let x = nn::add_gated(net, x, gate_time, y)?;

    let y = net.at("cross_attn", |net| nn::cross_attention(net, x, caption, heads))?;
    let x = net.add(x, y)?;

    let y = nn::modulated_norm(net, x, shift_mlp, scale_mlp)?;
    let y = net.at("mlp", |net| nn::mlp(net, y, config.common.mlp_hidden()))?;
    nn::add_gated(net, x, gate_mlp, y)
}

/// `[1, 1, tokens, width]`: positions relative to the size that the model was trained at.
fn spatial_positions(net: &mut Net<'_>, config: &Stdit2, bucket: &Bucket) -> Value {
    let common = &config.common;
    let [_, height, width] = nn::token_grid(bucket.latent, common.patch_size);
    let [pixels_high, pixels_wide] = bucket.pixels.map(|pixels| bucket.dtype.round(pixels));
    let grid = Grid {
        height,
        width,
        scale: (pixels_high * pixels_wide).sqrt() / config.input_sq_size,
        base_size: Some(((height * width) as f64).sqrt().round_ties_even() as usize),
    };
    let table = sincos::grid_table(&grid, common.hidden_size, bucket.dtype)?;
    let table = sincos::shaped(&table, &[1, 1, height * width, common.hidden_size], bucket.dtype)?;
    Ok(net.constant(table))
}
