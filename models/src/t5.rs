//! The T5 encoder: text tokens to the features that captions are made of.
//!
//! Upstream samples with T5 in f32. A half type is for its weights and for what is multiplied with
//! them; the residual stream stays f32, where the sums of all blocks would otherwise be rounded
//! again and again.

use ops::{Builder, DType, Graph, Tensor, TensorType, ValueId};

use crate::config::{Activation, T5};
use crate::net::{Net, Value, param_shapes};
use crate::{Error, nn};

const MODEL: &str = "T5";

/// What one T5 graph is specialized for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TextBucket {
    /// Storage type of parameters and of what is multiplied with them; residual stream and result
    /// are f32.
    pub dtype: DType,
    /// Number of captions.
    pub rows: usize,
    /// Tokens of a caption, padding included.
    pub tokens: usize,
    /// Whether there is an `attention_mask`.
    pub mask: bool,
}

/// The encoder as a graph with inputs `input_ids` i64 `[rows, tokens]` and `attention_mask` bool
/// `[rows, tokens]`, and one output, f32 `[rows, tokens, d_model]`.
pub fn graph(config: &T5, bucket: &TextBucket) -> Result<Graph, Error> {
    check(bucket)?;
    let mut b = Builder::new("t5");
    let shape = [bucket.rows, bucket.tokens];
    let ids = b.input("input_ids", TensorType::new(DType::I64, shape)?);
    let mask = if bucket.mask {
        Some(b.input("attention_mask", TensorType::new(DType::Bool, shape)?))
    } else {
        None
    };
    let out = forward(&mut b, config, bucket, ids, mask)?;
    Ok(b.finish(&[out]))
}

/// Names and shapes of the parameters.
pub fn params(config: &T5) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let smallest = TextBucket { dtype: DType::F32, rows: 1, tokens: 1, mask: false };
    Ok(param_shapes(&graph(config, &smallest)?))
}

/// Appends the encoder to `b`: features of `ids`, i64 `[rows, tokens]`. Tokens where `mask` (bool
/// `[rows, tokens]`) is false are not attended to; their own features have no meaning.
pub fn forward(
    b: &mut Builder,
    config: &T5,
    bucket: &TextBucket,
    ids: ValueId,
    mask: Option<ValueId>,
) -> Result<ValueId, Error> {
    check(bucket)?;
    let shape = [bucket.rows, bucket.tokens];
    for (name, value, dtype) in
        [("input_ids", Some(ids), DType::I64), ("attention_mask", mask, DType::Bool)]
    {
        let expected = TensorType::new(dtype, shape)?;
        if let Some(value) = value.filter(|&value| *b.ty(value) != expected) {
            let reason = format!("`{name}`: expected {expected}, found {}", b.ty(value));
            return Err(Error::Bucket { model: MODEL, reason });
        }
    }
    let net = &mut Net::new(b, bucket.dtype);

    let table = [config.vocab_size, config.d_model];
    let mut x = net.at("shared", |net| -> Value {
        let table = net.weight("weight", &table)?;
        let x = net.gather(table, ids)?;
        net.cast_to(x, DType::F32)
    })?;
    let x = net.at("encoder", |net| -> Value {
        let mut bias = None;
        for i in 0..config.num_layers {
            x = net.at(&format!("block.{i}"), |net| block(net, config, x, &mut bias, mask))?;
        }
        nn::rms_norm(net, "final_layer_norm", x, config.layer_norm_epsilon)
    })?;
    Ok(x)
}

fn check(bucket: &TextBucket) -> Result<(), Error> {
    if bucket.rows > 0 && bucket.tokens > 0 && bucket.dtype.is_float() {
        return Ok(());
    }
    let TextBucket { dtype, rows, tokens, .. } = bucket;
    let reason = format!("expected captions in a float type, found {rows} of {tokens} in {dtype}");
    Err(Error::Bucket { model: MODEL, reason })
}

/// Attention and feed-forward, each on the norm of the residual. The first block makes the position
/// bias, masked, which all of them use.
fn block(
    net: &mut Net<'_>,
    config: &T5,
    x: ValueId,
    bias: &mut Option<ValueId>,
    mask: Option<ValueId>,
) -> Value {
    let eps = config.layer_norm_epsilon;
    let x = net.at("layer.0", |net| -> Value {
        let y = nn::rms_norm(net, "layer_norm", x, eps)?;
        let y = net.stored(y)?;
        let y = net.at("SelfAttention", |net| attention(net, config, y, bias, mask))?;
        let y = net.cast_to(y, DType::F32)?;
        net.add(x, y)
    })?;
    net.at("layer.1", |net| -> Value {
        let y = nn::rms_norm(net, "layer_norm", x, eps)?;
        let y = net.stored(y)?;
        let y = net.at("DenseReluDense", |net| feed_forward(net, config, y))?;
        let y = net.cast_to(y, DType::F32)?;
        net.add(x, y)
    })
}

/// Scores are not scaled.
fn attention(
    net: &mut Net<'_>,
    config: &T5,
    x: ValueId,
    bias: &mut Option<ValueId>,
    mask: Option<ValueId>,
) -> Value {
    let [rows, tokens, width] = nn::dims(net, x);
    let (heads, head) = (config.num_heads, config.d_kv);
    let mut project = |name: &str| -> Value {
        let y = nn::linear_no_bias(net, name, x, heads * head)?;
        net.reshape(y, &[rows, tokens, heads, head])
    };
    let (q, k, v) = (project("q")?, project("k")?, project("v")?);
    let bias = match *bias {
        Some(bias) => bias,
        None => {
            let positions = position_bias(net, config, tokens)?;
            *bias.insert(masked(net, positions, mask)?)
        }
    };
    let y = net.attention([q, k, v], Some(bias), None, 1.0)?;
    let y = net.reshape(y, &[rows, tokens, heads * head])?;
    nn::linear_no_bias(net, "o", y, width)
}

/// `[1, heads, tokens, tokens]`: a learned number by head and distance from query to key.
fn position_bias(net: &mut Net<'_>, config: &T5, tokens: usize) -> Value {
    net.at("relative_attention_bias", |net| {
        let buckets = config.relative_attention_num_buckets;
        let table = net.weight("weight", &[buckets, config.num_heads])?;
        let ids = relative_position_buckets(config, tokens)?;
        let ids = net.constant(ids);
        let bias = net.gather(table, ids)?;
        let bias = net.permute(bias, &[2, 0, 1])?;
        net.reshape(bias, &[1, config.num_heads, tokens, tokens])
    })
}

/// The bias with the least number for keys that are not attended to, as upstream has it. Made once, it
/// is stored as attention reads it.
fn masked(net: &mut Net<'_>, bias: ValueId, mask: Option<ValueId>) -> Value {
    let bias = net.cast_to(bias, DType::F32)?;
    let Some(mask) = mask else { return Ok(bias) };
    let [rows, tokens] = *net.shape(mask) else { unreachable!("`forward` checked the mask") };
    let mask = net.reshape(mask, &[rows, 1, 1, tokens])?;
    let least = net.constant(Tensor::f32(&[1, 1, 1, 1], &[f32::MIN])?);
    net.select(mask, bias, least)
}

/// The bucket of the distance from each query to each key, i64 `[tokens, tokens]`: half of the
/// buckets for keys after the query; in each half, one per distance for the nearer half, then
/// logarithmic up to the greatest distance. In f32, as upstream.
pub fn relative_position_buckets(config: &T5, tokens: usize) -> Result<Tensor, ops::Error> {
    let half = config.relative_attention_num_buckets / 2;
    let exact = half / 2;
    let log_span = (config.relative_attention_max_distance as f64 / exact as f64).ln() as f32;
    let bucket = |distance: usize| {
        if distance < exact {
            return distance;
        }
        let log = (distance as f32 / exact as f32).ln();
        let far = exact + (log / log_span * (half - exact) as f32) as usize;
        far.min(half - 1)
    };
    let ty = TensorType::new(DType::I64, [tokens, tokens])?;
    let mut ids = Vec::with_capacity(ty.count());
    for query in 0..tokens {
        for key in 0..tokens {
            let base = if key > query { half } else { 0 };
            ids.push((base + bucket(key.abs_diff(query))) as i64);
        }
    }
    Ok(Tensor::ints(ty, ids))
}

fn feed_forward(net: &mut Net<'_>, config: &T5, x: ValueId) -> Value {
    let width = net.width(x);
    let hidden = if config.gated {
        let gate = nn::linear_no_bias(net, "wi_0", x, config.d_ff)?;
        let gate = activate(net, config.activation, gate)?;
        let y = nn::linear_no_bias(net, "wi_1", x, config.d_ff)?;
        net.mul(gate, y)?
    } else {
        let y = nn::linear_no_bias(net, "wi", x, config.d_ff)?;
        activate(net, config.activation, y)?
    };
    nn::linear_no_bias(net, "wo", hidden, width)
}

fn activate(net: &mut Net<'_>, activation: Activation, x: ValueId) -> Value {
    match activation {
        Activation::GeluTanh => net.gelu_tanh(x),
        Activation::Silu => net.silu(x),
        Activation::Relu => {
            let ty = TensorType::new(net.ty(x).dtype(), vec![1; net.shape(x).len()])?;
            let zero = net.constant(Tensor::floats(ty, vec![0.0]));
            net.maximum(x, zero)
        }
    }
}
