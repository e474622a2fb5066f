//! `AutoencoderKL`: images to latents and back, frame by frame.
//!
//! Images and latents are `[frames, channels, H, W]` at the boundary and channels-last inside.

use ops::defs::conv::Window;
use ops::{Builder, DType, Graph, TensorType, ValueId};

use crate::config::AutoencoderKl;
use crate::net::{Net, Value, param_shapes};
use crate::{Error, nn};

const MODEL: &str = "AutoencoderKL";
const NORM_EPS: f64 = 1e-6;

/// What latents are multiplied by for the diffusion model. Upstream uses this number with every
/// `AutoencoderKL`, whatever its `config.json` says.
pub const LATENT_SCALE: f64 = 0.18215;

/// What one encoder or decoder graph is specialized for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameBucket {
    /// Storage type of parameters and activations; inputs and results are f32.
    pub dtype: DType,
    /// Frames in one call.
    pub frames: usize,
    /// Height of what is given: pixels to the encoder, latents to the decoder.
    pub height: usize,
    /// Width of what is given.
    pub width: usize,
}

/// The posterior of an image, each f32 `[frames, latent_channels, h, w]`, but for the moments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Posterior {
    /// Mean and unclamped logarithm of the variance, `[frames, 2 * latent_channels, h, w]`.
    pub moments: ValueId,
    /// Mean.
    pub mean: ValueId,
    /// Logarithm of the variance, within -30 and 20.
    pub logvar: ValueId,
}

/// The encoder as a graph with the input `x` (-1 to 1) and the outputs moments, mean and logvar.
pub fn encoder_graph(config: &AutoencoderKl, bucket: &FrameBucket) -> Result<Graph, Error> {
    check(config, bucket, config.downscale())?;
    let mut b = Builder::new("vae_encoder");
    let x = b.input("x", bucket.ty(config.in_channels)?);
    let Posterior { moments, mean, logvar } = encode(&mut b, config, bucket, x)?;
    Ok(b.finish(&[moments, mean, logvar]))
}

/// The decoder as a graph with the input `z` and one output, f32 `[frames, channels, H, W]`, which
/// is not clamped.
pub fn decoder_graph(config: &AutoencoderKl, bucket: &FrameBucket) -> Result<Graph, Error> {
    check(config, bucket, 1)?;
    let mut b = Builder::new("vae_decoder");
    let z = b.input("z", bucket.ty(config.latent_channels)?);
    let x = decode(&mut b, config, bucket, z)?;
    Ok(b.finish(&[x]))
}

/// Names and shapes of the parameters of the encoder, then of the decoder.
pub fn params(config: &AutoencoderKl) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let size = config.downscale();
    let pixels = FrameBucket { dtype: DType::F32, frames: 1, height: size, width: size };
    let mut params = param_shapes(&encoder_graph(config, &pixels)?);
    let latents = FrameBucket { height: 1, width: 1, ..pixels };
    params.extend(param_shapes(&decoder_graph(config, &latents)?));
    Ok(params)
}

/// Appends the encoder to `b`: the posterior of `x`, f32 `[frames, channels, H, W]`.
pub fn encode(
    b: &mut Builder,
    config: &AutoencoderKl,
    bucket: &FrameBucket,
    x: ValueId,
) -> Result<Posterior, Error> {
    check(config, bucket, config.downscale())?;
    expect_type(b, "x", x, &bucket.ty(config.in_channels)?)?;
    let latent = config.latent_channels;
    let net = &mut Net::new(b, bucket.dtype);
    let x = channels_last(net, x)?;
    let x = net.at("encoder", |net| encoder(net, config, x))?;
    let x = if config.use_quant_conv { conv(net, "quant_conv", x, 2 * latent, 1)? } else { x };
    let moments = channels_first(net, x)?;
    let mean = net.slice_axis(moments, 1, 0, latent)?;
    let logvar = net.slice_axis(moments, 1, latent, 2 * latent)?;
    let logvar = clamp(net, logvar, -30.0, 20.0)?;
    Ok(Posterior { moments, mean, logvar })
}

/// Appends a draw from the posterior, as the decoder takes it: `noise` is standard normal, f32 in the
/// shape of the mean.
pub fn draw(b: &mut Builder, posterior: &Posterior, noise: ValueId) -> Result<ValueId, Error> {
    let half = b.mul_scalar(posterior.logvar, 0.5)?;
    let std = b.exp(half)?;
    let deviation = b.mul(std, noise)?;
    Ok(b.add(posterior.mean, deviation)?)
}

/// Appends a [`draw`] from the posterior, scaled for the diffusion model.
pub fn sample(b: &mut Builder, posterior: &Posterior, noise: ValueId) -> Result<ValueId, Error> {
    let z = draw(b, posterior, noise)?;
    Ok(b.mul_scalar(z, LATENT_SCALE)?)
}

/// Appends the decoder to `b`: images of `z`, f32 `[frames, latent_channels, h, w]`, which is not
/// scaled for the diffusion model.
pub fn decode(
    b: &mut Builder,
    config: &AutoencoderKl,
    bucket: &FrameBucket,
    z: ValueId,
) -> Result<ValueId, Error> {
    check(config, bucket, 1)?;
    expect_type(b, "z", z, &bucket.ty(config.latent_channels)?)?;
    let net = &mut Net::new(b, bucket.dtype);
    let mut x = channels_last(net, z)?;
    if config.use_post_quant_conv {
        x = conv(net, "post_quant_conv", x, config.latent_channels, 1)?;
    }
    let x = net.at("decoder", |net| decoder(net, config, x))?;
    Ok(channels_first(net, x)?)
}

impl FrameBucket {
    fn ty(&self, channels: usize) -> Result<TensorType, ops::Error> {
        TensorType::new(DType::F32, [self.frames, channels, self.height, self.width])
    }
}

fn check(config: &AutoencoderKl, bucket: &FrameBucket, least: usize) -> Result<(), Error> {
    let fail = |reason: String| Err(Error::Bucket { model: MODEL, reason });
    let FrameBucket { dtype, frames, height, width } = *bucket;
    if !dtype.is_float() {
        return fail(format!("expected a float storage type, found {dtype}"));
    }
    if frames == 0 || height < least || width < least {
        return fail(format!(
            "expected at least 1 frame of {least}x{least}, found {frames} of {height}x{width}"
        ));
    }
    let groups = config.norm_num_groups;
    match config.block_out_channels.iter().find(|&&channels| !channels.is_multiple_of(groups)) {
        Some(channels) => fail(format!("{channels} channels do not split into {groups} groups")),
        None => Ok(()),
    }
}

fn expect_type(b: &Builder, name: &str, x: ValueId, expected: &TensorType) -> Result<(), Error> {
    if b.ty(x) == expected {
        return Ok(());
    }
    let reason = format!("`{name}`: expected {expected}, found {}", b.ty(x));
    Err(Error::Bucket { model: MODEL, reason })
}

fn encoder(net: &mut Net<'_>, config: &AutoencoderKl, x: ValueId) -> Value {
    let channels = &config.block_out_channels;
    let mut x = conv(net, "conv_in", x, channels[0], 3)?;
    for (i, &out) in channels.iter().enumerate() {
        x = net.at(&format!("down_blocks.{i}"), |net| -> Value {
            let mut x = x;
            for j in 0..config.layers_per_block {
                x = net.at(&format!("resnets.{j}"), |net| resnet(net, config, x, out))?;
            }
            if i + 1 < channels.len() {
                x = net.at("downsamplers.0", |net| downsample(net, x))?;
            }
            Ok(x)
        })?;
    }
    let x = net.at("mid_block", |net| mid_block(net, config, x))?;
    head(net, config, x, 2 * config.latent_channels)
}

fn decoder(net: &mut Net<'_>, config: &AutoencoderKl, x: ValueId) -> Value {
    let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    let x = conv(net, "conv_in", x, channels[0], 3)?;
    let mut x = net.at("mid_block", |net| mid_block(net, config, x))?;
    let mut is_joined = false;
    for (i, &out) in channels.iter().enumerate() {
        for j in usize::from(is_joined)..=config.layers_per_block {
            let name = format!("up_blocks.{i}.resnets.{j}");
            x = net.at(&name, |net| resnet(net, config, x, out))?;
        }
        let Some(&next) = channels.get(i + 1) else { break };
        let [frames, height, width, _] = nn::dims(net, x);
        let frame = TensorType::new(net.dtype(), [frames, 2 * height, 2 * width, out])?;
        let parts = if next == out { 1 } else { n_parts(config, &frame) };
        is_joined = parts > 1;
        let up = format!("up_blocks.{i}.upsamplers.0.conv");
        x = if is_joined {
            let resnet = format!("up_blocks.{}.resnets.0", i + 1);
            upsample_in_parts(net, config, x, [&up, &resnet], next, parts)?
        } else {
            let x = doubled(net, x)?;
            conv(net, &up, x, out, 3)?
        };
    }
    head(net, config, x, config.out_channels)
}

/// Bytes above which a frame between two blocks is made a part of its channels at a time.
const MAX_FRAME_BYTES: usize = 256 << 20;
/// Most bytes of such a part: beside what the parts add up to, it is what a decoder holds at its widest.
const MAX_PART_BYTES: usize = 180 << 20;

/// In how many parts an upsampled frame is made: each has whole groups of the norm.
fn n_parts(config: &AutoencoderKl, frame: &TensorType) -> usize {
    if frame.bytes() <= MAX_FRAME_BYTES {
        return 1;
    }
    let groups = config.norm_num_groups;
    let is_enough =
        |parts: &usize| frame.bytes() / groups * groups.div_ceil(*parts) <= MAX_PART_BYTES;
    (2..=groups).find(is_enough).unwrap_or(groups)
}

/// Upsamples to `x`'s channels and runs the resnet to `out` channels behind it, where the frame
/// between is the widest of all: only one of `parts` parts of its channels exists at a time. The
/// norm's groups lie within parts, and what the resnet's convolutions make of a part is added up, so
/// the values are those of the whole but for the order of sums.
fn upsample_in_parts(
    net: &mut Net<'_>,
    config: &AutoencoderKl,
    x: ValueId,
    [up, resnet]: [&str; 2],
    out: usize,
    parts: usize,
) -> Value {
    let width = net.width(x);
    let (groups, per_group) = (config.norm_num_groups, width / config.norm_num_groups);
    let per_part = groups.div_ceil(parts);
    let params = |net: &mut Net<'_>, name: &str, weight: &[usize]| {
        net.at(name, |net| -> Result<_, ops::Error> {
            let bias = [weight[0]];
            Ok((net.weight("weight", weight)?, net.weight("bias", &bias)?))
        })
    };
    let up_params = params(net, up, &[width, width, 3, 3])?;
    let norm = params(net, &format!("{resnet}.norm1"), &[width])?;
    let conv1 = params(net, &format!("{resnet}.conv1"), &[out, width, 3, 3])?;
    let shortcut = params(net, &format!("{resnet}.conv_shortcut"), &[out, width, 1, 1])?;
    let (mut hidden, mut sum) = (None, None);
    // Equal parts and a rest: full vectors of channels where groups make them.
    for first in (0..groups).step_by(per_part) {
        let end = groups.min(first + per_part);
        let (start, stop) = (first * per_group, end * per_group);
        let x = net.at(up, |net| -> Value {
            let weight = net.slice_axis(up_params.0, 0, start, stop)?;
            let bias = net.slice_axis(up_params.1, 0, start, stop)?;
            let x = doubled(net, x)?;
            let bias = net.reshape(bias, &[1, 1, 1, stop - start])?;
            let y = net.conv(x, weight, &same_window(3))?;
            net.add(y, bias)
        })?;
        // The bias, or what the parts before came to, is added to the convolution of a part.
        let accumulate =
            |net: &mut Net<'_>, x, params: (ValueId, ValueId), kernel, before| -> Value {
                let weight = net.slice_axis(params.0, 1, start, stop)?;
                let y = net.conv(x, weight, &same_window(kernel))?;
                let before = match before {
                    Some(before) => before,
                    None => net.reshape(params.1, &[1, 1, 1, out])?,
                };
                net.add(y, before)
            };
        net.at(resnet, |net| -> Result<(), ops::Error> {
            let weight = net.slice_axis(norm.0, 0, start, stop)?;
            let bias = net.slice_axis(norm.1, 0, start, stop)?;
            let y = net.group_norm(x, weight, bias, end - first, NORM_EPS)?;
            let y = net.silu(y)?;
            hidden = Some(accumulate(net, y, conv1, 3, hidden)?);
            sum = Some(accumulate(net, x, shortcut, 1, sum)?);
            Ok(())
        })?;
    }
    let (hidden, sum) = hidden.zip(sum).expect("there is a part");
    net.at(resnet, |net| {
        let y = group_norm(net, "norm2", config, hidden)?;
        let y = net.silu(y)?;
        let y = conv(net, "conv2", y, out, 3)?;
        net.add(sum, y)
    })
}

/// The last norm and convolution of either half.
fn head(net: &mut Net<'_>, config: &AutoencoderKl, x: ValueId, out: usize) -> Value {
    let x = group_norm(net, "conv_norm_out", config, x)?;
    let x = net.silu(x)?;
    conv(net, "conv_out", x, out, 3)
}

fn mid_block(net: &mut Net<'_>, config: &AutoencoderKl, x: ValueId) -> Value {
    let width = net.width(x);
    let mut x = net.at("resnets.0", |net| resnet(net, config, x, width))?;
    if config.mid_block_add_attention {
        x = net.at("attentions.0", |net| attention(net, config, x))?;
    }
    net.at("resnets.1", |net| resnet(net, config, x, width))
}

/// Two convolutions on the norm, added to the operand, which a 1x1 convolution brings to `out`
/// channels if it has others.
fn resnet(net: &mut Net<'_>, config: &AutoencoderKl, x: ValueId, out: usize) -> Value {
    let y = group_norm(net, "norm1", config, x)?;
    let y = net.silu(y)?;
    let y = conv(net, "conv1", y, out, 3)?;
    let y = group_norm(net, "norm2", config, y)?;
    let y = net.silu(y)?;
    let y = conv(net, "conv2", y, out, 3)?;
    let x = if net.width(x) == out { x } else { conv(net, "conv_shortcut", x, out, 1)? };
    net.add(x, y)
}

/// Attention of all places of a frame to each other, with one head.
fn attention(net: &mut Net<'_>, config: &AutoencoderKl, x: ValueId) -> Value {
    let [frames, height, width, channels] = nn::dims(net, x);
    let y = group_norm(net, "group_norm", config, x)?;
    let y = net.reshape(y, &[frames, height * width, channels])?;
    let mut project = |name: &str| -> Value {
        let y = nn::linear(net, name, y, channels)?;
        net.reshape(y, &[frames, height * width, 1, channels])
    };
    let (q, k, v) = (project("to_q")?, project("to_k")?, project("to_v")?);
    let y = net.attention([q, k, v], None, None, (channels as f64).powf(-0.5))?;
    let y = net.reshape(y, &[frames, height, width, channels])?;
    let y = nn::linear(net, "to_out.0", y, channels)?;
    net.add(x, y)
}

/// Halves height and width, rounding down; padded at the high side only.
fn downsample(net: &mut Net<'_>, x: ValueId) -> Value {
    let width = net.width(x);
    let window = Window::new(&[2, 2], &[0, 0], &[1, 1]);
    net.at("conv", |net| conv_at(net, x, width, 3, &window))
}

/// Every pixel twice in both directions.
fn doubled(net: &mut Net<'_>, x: ValueId) -> Value {
    let [frames, height, width, channels] = nn::dims(net, x);
    let x = net.reshape(x, &[frames, height, 1, width, 1, channels])?;
    let x = net.broadcast(x, &[frames, height, 2, width, 2, channels])?;
    net.reshape(x, &[frames, 2 * height, 2 * width, channels])
}

/// A square window that keeps the size.
fn same_window(kernel: usize) -> Window {
    let pad = [kernel / 2; 2];
    Window::new(&[1, 1], &pad, &pad)
}

/// A square convolution that keeps the size.
fn conv(net: &mut Net<'_>, name: &str, x: ValueId, out: usize, kernel: usize) -> Value {
    net.at(name, |net| conv_at(net, x, out, kernel, &same_window(kernel)))
}

fn conv_at(net: &mut Net<'_>, x: ValueId, out: usize, kernel: usize, window: &Window) -> Value {
    let weight = net.weight("weight", &[out, net.width(x), kernel, kernel])?;
    let bias = net.weight("bias", &[out])?;
    let bias = net.reshape(bias, &[1, 1, 1, out])?;
    let y = net.conv(x, weight, window)?;
    net.add(y, bias)
}

fn group_norm(net: &mut Net<'_>, name: &str, config: &AutoencoderKl, x: ValueId) -> Value {
    net.at(name, |net| {
        let width = net.width(x);
        let weight = net.weight("weight", &[width])?;
        let bias = net.weight("bias", &[width])?;
        net.group_norm(x, weight, bias, config.norm_num_groups, NORM_EPS)
    })
}

fn clamp(net: &mut Net<'_>, x: ValueId, low: f64, high: f64) -> Value {
    let ty = TensorType::new(net.ty(x).dtype(), vec![1; net.shape(x).len()])?;
    let low = net.constant(ops::Tensor::floats(ty.clone(), vec![low]));
    let high = net.constant(ops::Tensor::floats(ty, vec![high]));
    let x = net.maximum(x, low)?;
    net.minimum(x, high)
}

fn channels_last(net: &mut Net<'_>, x: ValueId) -> Value {
    let x = net.stored(x)?;
    net.permute(x, &[0, 2, 3, 1])
}

fn channels_first(net: &mut Net<'_>, x: ValueId) -> Value {
    let x = net.permute(x, &[0, 3, 1, 2])?;
    net.cast_to(x, DType::F32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ops::{Rounding, Tensor, eval};

    use super::*;

    /// What the widest place of a decoder from 12 to 8 channels makes of some numbers.
    fn upsampled(parts: usize) -> Vec<f64> {
        let config = serde_json::json!({"block_out_channels": [8, 12], "norm_num_groups": 4});
        let config = AutoencoderKl::from_json(&config).unwrap();
        let mut b = Builder::new("widest");
        let x = b.input("x", TensorType::new(DType::F32, [2, 3, 2, 12]).unwrap());
        let net = &mut Net::new(&mut b, DType::F32);
        let y = if parts > 1 {
            upsample_in_parts(net, &config, x, ["up", "resnet"], 8, parts).unwrap()
        } else {
            let y = doubled(net, x).unwrap();
            let y = conv(net, "up", y, 12, 3).unwrap();
            net.at("resnet", |net| resnet(net, &config, y, 8)).unwrap()
        };
        let graph = b.finish(&[y]);
        let given = graph.values().filter_map(|value| {
            let name = match &graph.node(value).role {
                ops::Role::Input(name) | ops::Role::Param(name) => name.to_string(),
                ops::Role::Constant(_) | ops::Role::Op(_) => return None,
            };
            let ty = graph.ty(value).clone();
            let seed = name.bytes().map(f64::from).sum::<f64>();
            let numbers = (0..ty.count()).map(|i| (i as f64 * 0.7 + seed).sin()).collect();
            Some((name, Tensor::floats(ty, numbers)))
        });
        let given: BTreeMap<String, Tensor> = given.collect();
        eval(&graph, &given, Rounding::Exact).unwrap().remove(0).as_floats().to_vec()
    }

    #[test]
    fn parts_of_the_widest_frame_add_up_to_the_whole() {
        let whole = upsampled(1);
        for parts in [2, 3, 4] {
            let found = upsampled(parts);
            assert_eq!(found.len(), whole.len());
            // f64 sums in another order.
            let close = found.iter().zip(&whole).all(|(f, w)| (f - w).abs() < 1e-9);
            assert!(close, "{parts} parts differ");
        }
    }

    #[test]
    fn frames_are_split_into_as_many_parts_as_their_size_needs() {
        let config = AutoencoderKl::from_json(&serde_json::json!({})).unwrap();
        let parts = |dtype, height, width| {
            n_parts(&config, &TensorType::new(dtype, [1, height, width, 256]).unwrap())
        };
        assert_eq!(parts(DType::F32, 512, 512), 1);
        assert_eq!(parts(DType::F32, 720, 1280), 6);
        assert_eq!(parts(DType::Bf16, 720, 1280), 3);
    }
}
