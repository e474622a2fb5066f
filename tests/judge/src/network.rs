//! The classifier's graph: a clip to the logits of every head.
//!
//! Patches of each frame attend to each other, what heads may need of a frame is gathered by a few learned
//! weightings of its patches, and then frames attend to each other. Layers are those of `models::nn`.

use models::nn::{
    NORM_EPS, Over, QkNorm, SelfAttention, dims, linear, mlp, patch_embed, self_attention,
};
use models::{Net, param_shapes};
use ops::{Builder, DType, Error, Graph, TensorType, ValueId};

use crate::clips::{N_FRAMES, SIDE};
use crate::labels::HEADS;

/// Height and width of a patch in pixels.
const PATCH: usize = 8;
/// Ways in which the patches of a frame are weighted.
const N_WEIGHTINGS: usize = 4;
/// Of so many frames one is looked at: neighbors show much the same.
const FRAME_STEP: usize = 2;
/// What differences of colors are multiplied by, so that they are about 1.
const CONTRAST: f64 = 3.0;
/// Width of the hidden layer of a block over that of its tokens.
const MLP_RATIO: usize = 4;

/// Sizes of the classifier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// Width of tokens.
    pub width: usize,
    /// Heads of attention, which divide the width.
    pub heads: usize,
    /// Blocks over the patches of a frame.
    pub space_blocks: usize,
    /// Blocks over frames.
    pub time_blocks: usize,
}

impl Default for Network {
    /// 0.7 M parameters.
    fn default() -> Network {
        Network { width: 128, heads: 4, space_blocks: 1, time_blocks: 2 }
    }
}

impl Network {
    /// The graph for `rows` clips: the input `x` f32 `[rows, 3, N_FRAMES, SIDE, SIDE]` in -1..1, and the logits of each
    /// of [`HEADS`], f32 `[rows, classes]`.
    ///
    /// # Errors
    /// What an op refuses: heads that do not divide the width.
    pub fn graph(&self, rows: usize) -> Result<Graph, Error> {
        let mut b = Builder::new("judge");
        let x = b.input("x", TensorType::new(DType::F32, [rows, 3, N_FRAMES, SIDE, SIDE])?);
        let logits = self.forward(&mut Net::new(&mut b, DType::F32), x)?;
        Ok(b.finish(&logits))
    }

    /// Names and shapes of the parameters.
    ///
    /// # Errors
    /// As [`Network::graph`].
    pub fn params(&self) -> Result<Vec<(String, Vec<usize>)>, Error> {
        Ok(param_shapes(&self.graph(1)?))
    }

    fn forward(&self, net: &mut Net<'_>, x: ValueId) -> Result<Vec<ValueId>, Error> {
        let width = self.width;
        let [rows, _, frames, height, wide] = dims(net, x);
        let stop = [rows, 3, frames, height, wide];
        let x = net.slice(x, &[0; 5], &stop, &[1, 1, FRAME_STEP, 1, 1])?;
        // Colors are told by their mean; patches then tell figures, not grounds.
        let color = net.reduce_mean(x, &[2, 3, 4])?;
        let x = net.sub(x, color)?;
        let x = net.mul_scalar(x, CONTRAST)?;
        let x = net.at("patches", |net| patch_embed(net, x, [1, PATCH, PATCH], width))?;
        let [rows, frames, tokens, _] = dims(net, x);
        let places = net.weight("places", &[1, 1, tokens, width])?;
        let mut x = net.add(x, places)?;
        for index in 0..self.space_blocks {
            x = net.at(&format!("space.{index}"), |net| self.block(net, x))?;
        }
        // [rows, frames, tokens, width] -> [rows, 1, frames, width]
        let x = net.at("gather", |net| -> Result<ValueId, Error> {
            let x = net.layer_norm(x, NORM_EPS)?;
            let scores = linear(net, "scores", x, N_WEIGHTINGS)?;
            let scores = net.permute(scores, &[0, 1, 3, 2])?;
            let weights = net.softmax(scores, 3)?;
            let gathered = net.matmul(weights, x, false, false)?;
            let gathered = net.reshape(gathered, &[rows, 1, frames, N_WEIGHTINGS * width])?;
            linear(net, "proj", gathered, width)
        })?;
        let times = net.weight("times", &[1, 1, frames, width])?;
        let mut x = net.add(x, times)?;
        for index in 0..self.time_blocks {
            x = net.at(&format!("time.{index}"), |net| self.block(net, x))?;
        }
        let x = net.layer_norm(x, NORM_EPS)?;
        let x = net.reduce_mean(x, &[2])?;
        let x = net.reshape(x, &[rows, width])?;
        let color = net.reshape(color, &[rows, 3])?;
        let color = net.mul_scalar(color, CONTRAST)?;
        let x = net.concat(&[x, color], 1)?;
        HEADS.iter().map(|head| linear(net, head.name(), x, head.n_classes())).collect()
    }

    /// A block over the third axis of `x` `[rows, .., tokens, width]`.
    fn block(&self, net: &mut Net<'_>, x: ValueId) -> Result<ValueId, Error> {
        let how = SelfAttention {
            over: Over::Space,
            heads: self.heads,
            qk_norm: QkNorm::Off,
            angles: None,
        };
        let normed = net.layer_norm(x, NORM_EPS)?;
        let attended = net.at("attn", |net| self_attention(net, normed, &how))?;
        let x = net.add(x, attended)?;
        let normed = net.layer_norm(x, NORM_EPS)?;
        let made = net.at("mlp", |net| mlp(net, normed, MLP_RATIO * self.width))?;
        net.add(x, made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clip_gives_logits_of_every_head() {
        let network = Network::default();
        let graph = network.graph(3).unwrap();
        let shapes: Vec<&[usize]> =
            graph.outputs.iter().map(|&output| graph.ty(output).shape()).collect();
        assert_eq!(shapes, [[3, 10], [3, 4], [3, 4], [3, 8]]);
        let params = network.params().unwrap();
        let n: usize = params.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert!((600_000..800_000).contains(&n), "{n}");
        let mut names: Vec<&String> = params.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), params.len(), "two parameters have one name");
    }
}
