//! A low-rank adaptation as a file, and merged into the weights that it is of.
//!
//! A file is safetensors with two float tensors for each adapted weight `MODULE.weight`: `MODULE.lora_A.weight`
//! `[rank, in]` and `MODULE.lora_B.weight` `[out, rank]`, axes of the weight behind the first taken as one. Its
//! metadata has `rank` and `alpha`. What PEFT saves is read too (`adapter_peft.rs`): names below `base_model.model.`
//! or `transformer.`, factors of convolutions, and `adapter_config.json` beside the file instead of the metadata.
//!
//! A file is outside data: whatever it holds gives an adaptation or a message that names the tensor.

use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::names::{Fitted, Parameter};
use checkpoint::{Checkpoint, DType, SafetensorsWriter, TensorSpec, TensorView, write_safetensors};
use models::nearest::nearest;
use serde_json::Value;

use crate::adapter_peft::{
    PEFT_CONFIG, PREFIX, bare, files, read_config, stated as stated_by_peft,
};
use crate::{Error, Lora, State, StateKind};

/// Metadata of a file.
const RANK: &str = "rank";
const ALPHA: &str = "alpha";

/// The factors of one weight, row-major.
#[derive(Clone, PartialEq, Debug)]
pub struct Factors {
    /// `[rank, in]`.
    pub first: Vec<f32>,
    /// `[out, rank]`.
    pub second: Vec<f32>,
}

/// Factors of some weights of a model.
#[derive(Clone, PartialEq, Debug)]
pub struct Adapter {
    rank: usize,
    alpha: f64,
    /// By checkpoint name of the weight.
    factors: BTreeMap<String, Factors>,
    /// Where it is from, for messages.
    origin: String,
}

impl Adapter {
    /// The adaptation that training has reached: its factors, or their moving averages.
    ///
    /// # Errors
    /// [`Error::State`] if `state` has none of this kind and rank.
    pub fn of_state(lora: &Lora, state: &State, kind: StateKind) -> Result<Adapter, Error> {
        lora.check()?;
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        for (_, name, values) in state.tensors().filter(|(found, ..)| *found == kind) {
            let none = || Error::State(format!("`{name}` is no factor of rank {}", lora.rank));
            let (target, place) = target_of(name).ok_or_else(none)?;
            if !values.len().is_multiple_of(lora.rank) {
                return Err(none());
            }
            let other = values.len() / lora.rank;
            let shape = if place == FIRST { [lora.rank, other] } else { [other, lora.rank] };
            pairs.entry(target).or_default()[place] = Some((shape, values.to_vec()));
        }
        if pairs.is_empty() {
            return Err(Error::State(format!("it has no {kind:?} of a factor")));
        }
        let stated = Stated { rank: Some(lora.rank), alpha: Some(lora.alpha) };
        Adapter::new(pairs, stated, "of this run".into())
    }

    /// Reads an adaptation: a safetensors file, or a folder as PEFT saves it. `alpha` is for files that do not say
    /// theirs, and wins over what they say.
    ///
    /// # Errors
    /// [`Error::Adapter`] for whatever is no adaptation.
    pub fn open(path: &Path, alpha: Option<f64>) -> Result<Adapter, Error> {
        let fail = |reason: String| Error::adapter(path.display().to_string(), reason);
        let (weights, config) = files(path);
        let file = Checkpoint::open(&weights).map_err(|error| fail(error.to_string()))?;
        let config = read_config(&config, fail)?;
        Adapter::read(&file, config.as_ref(), alpha, path.display().to_string())
    }

    /// [`Adapter::open`] on what was opened: tensors with their metadata, and PEFT's configuration if there is
    /// one. `origin` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Adapter`].
    pub fn read(
        file: &Checkpoint,
        config: Option<&Value>,
        alpha: Option<f64>,
        origin: String,
    ) -> Result<Adapter, Error> {
        let fail = |reason: String| Error::adapter(origin.clone(), reason);
        let stated = match config {
            Some(config) => stated_by_peft(config),
            None => Stated::of_metadata(file.metadata()),
        };
        let mut stated = stated.map_err(&fail)?;
        stated.alpha = alpha.or(stated.alpha);
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        for info in file.tensors() {
            let (target, place) = target_of(info.name).ok_or_else(|| {
                fail(format!(
                    "tensor `{}` is no factor; expected names such as blocks.0.attn.qkv.lora_A.weight, \
                     as they are or below {}",
                    info.name, PREFIX
                ))
            })?;
            let shape = matrix(place, info.shape).ok_or_else(|| {
                let expected = ["[rank, in]", "[out, rank]"][place];
                fail(format!("`{}` is {:?}, expected {expected}", info.name, info.shape))
            })?;
            let values = file.to_f32(info.name).map_err(|error| fail(error.to_string()))?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(fail(format!("`{}`: element {at} is {}", info.name, values[at])));
            }
            if pairs.entry(target).or_default()[place].replace((shape, values)).is_some() {
                return Err(fail(format!("`{}` is there under two names", info.name)));
            }
        }
        if pairs.is_empty() {
            return Err(fail("it has no tensors; expected factors".into()));
        }
        Adapter::new(pairs, stated, origin)
    }

    /// Puts pairs together that fit each other and what is stated.
    fn new(
        pairs: BTreeMap<String, Pair>,
        stated: Stated,
        origin: String,
    ) -> Result<Adapter, Error> {
        let fail = |reason: String| Error::adapter(origin.clone(), reason);
        let mut rank = stated.rank;
        let mut factors = BTreeMap::new();
        for (target, pair) in pairs {
            let missing = FACTORS[usize::from(pair[FIRST].is_some())];
            let [Some((first_shape, first)), Some((second_shape, second))] = pair else {
                return Err(fail(format!("`{target}` has no {missing}; expected both factors")));
            };
            let (rows, columns) = (first_shape[0], second_shape[1]);
            if rows != columns {
                return Err(fail(format!(
                    "`{target}`: its factors are {first_shape:?} and {second_shape:?}, of rank {rows} and \
                     {columns}; expected one rank"
                )));
            }
            if *rank.get_or_insert(rows) != rows {
                return Err(fail(format!(
                    "`{target}` has rank {rows}, expected {} as the adaptation has",
                    rank.unwrap_or(rows)
                )));
            }
            factors.insert(target, Factors { first, second });
        }
        let rank = rank
            .filter(|&rank| rank > 0)
            .ok_or_else(|| fail("its rank is 0, expected 1 or more".into()))?;
        let alpha = stated.alpha.ok_or_else(|| {
            fail(format!(
                "it does not say its alpha; expected the metadata `{ALPHA}` or {PEFT_CONFIG} beside it, or \
                 give it (--alpha)"
            ))
        })?;
        if !(alpha > 0.0 && alpha.is_finite()) {
            return Err(fail(format!("its alpha is {alpha}, expected above 0")));
        }
        Ok(Adapter { rank, alpha, factors, origin })
    }

    /// Columns of the second factors.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Products of factors count `alpha / rank` times.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Checkpoint names of the adapted weights, in order, with their factors.
    pub fn factors(&self) -> impl ExactSizeIterator<Item = (&str, &Factors)> {
        self.factors.iter().map(|(name, factors)| (name.as_str(), factors))
    }

    /// Writes the adaptation under the names that [`Adapter::open`] documents.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for the system's; nothing is left behind then.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        self.write_factors(path, |target, [first, second]| {
            let module = target.strip_suffix(".weight").unwrap_or(target);
            let name = |factor: &str| format!("{module}.{factor}.weight");
            [(name(FACTORS[0]), first.to_vec()), (name(FACTORS[1]), second.to_vec())]
        })
    }

    /// Writes all factors with the metadata of our files. `named` gives their names and shapes for the name of an
    /// adapted weight and their shapes as matrices.
    pub(crate) fn write_factors(
        &self,
        path: &Path,
        named: impl Fn(&str, [[usize; 2]; 2]) -> [(String, Vec<usize>); 2],
    ) -> Result<(), Error> {
        let mut tensors = BTreeMap::new();
        for (target, Factors { first, second }) in &self.factors {
            let shapes =
                [[self.rank, first.len() / self.rank], [second.len() / self.rank, self.rank]];
            for ((name, shape), values) in named(target, shapes).into_iter().zip([first, second]) {
                let bytes = Cow::Borrowed(bytemuck::cast_slice(values));
                tensors.insert(name, TensorView { dtype: DType::F32, shape, bytes });
            }
        }
        let metadata = BTreeMap::from([
            (RANK.to_owned(), self.rank.to_string()),
            (ALPHA.to_owned(), self.alpha.to_string()),
        ]);
        Ok(write_safetensors(path, &tensors, &metadata)?)
    }

    /// Fails unless every adapted weight is a parameter of two or more axes that its factors fit.
    ///
    /// # Errors
    /// [`Error::Adapter`], which names the nearest parameter for an unknown one.
    pub fn check(&self, params: &[Parameter]) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::adapter(self.origin.clone(), reason));
        for (target, factors) in &self.factors {
            let found = params.iter().find(|(name, _)| name == target);
            let Some((_, shape)) = found else {
                let weights = params.iter().map(|(name, _)| name.as_str());
                let weights: Vec<&str> = weights.filter(|name| name.ends_with(".weight")).collect();
                let meant = match weights.is_empty() {
                    true => String::new(),
                    false => format!("; did it mean `{}`?", nearest(target, weights)),
                };
                return fail(format!("it adapts `{target}`, which the model does not have{meant}"));
            };
            let inner = factors.first.len() / self.rank;
            let out = factors.second.len() / self.rank;
            let fits = shape.len() >= 2
                && shape[0] == out
                && shape[1..].iter().product::<usize>() == inner;
            if !fits {
                return fail(format!(
                    "`{target}`: its factors make {out} x {inner}, the weight is {shape:?}"
                ));
            }
        }
        Ok(())
    }

    /// Adds to the weight `name`, row-major and of the shape that [`Adapter::check`] has seen, what the
    /// adaptation makes of it: `alpha / rank` times the product of the factors, summed in f32 as in a training
    /// step. `false` if it is not adapted.
    pub fn merge(&self, name: &str, weight: &mut [f32]) -> bool {
        let Some(Factors { first, second }) = self.factors.get(name) else { return false };
        let scale = (self.alpha / self.rank as f64) as f32;
        let inner = first.len() / self.rank;
        let mut sum = vec![0f32; inner];
        for (row, coefficients) in
            weight.chunks_exact_mut(inner).zip(second.chunks_exact(self.rank))
        {
            sum.fill(0.0);
            for (coefficient, direction) in coefficients.iter().zip(first.chunks_exact(inner)) {
                sum.iter_mut().zip(direction).for_each(|(sum, x)| *sum += coefficient * x);
            }
            row.iter_mut().zip(&sum).for_each(|(weight, sum)| *weight += scale * sum);
        }
        true
    }

    /// Writes a model's weights with the adaptation merged, as safetensors under the model's names, each weight in
    /// the type that it is stored in. One weight is in memory at a time.
    ///
    /// # Errors
    /// As [`Adapter::check`] on the weights; [`Error::Weight`] for what is no float or leaves the range of its
    /// type; [`Error::Checkpoint`] for the system's, after which nothing is left behind.
    pub fn write_merged<C: Borrow<Checkpoint>>(
        &self,
        weights: &Fitted<C>,
        path: &Path,
    ) -> Result<(), Error> {
        let mut specs = Vec::new();
        for name in weights.names() {
            let view = weights.tensor(name)?;
            specs.push(TensorSpec { name: name.into(), dtype: view.dtype, shape: view.shape });
        }
        let params: Vec<Parameter> =
            specs.iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect();
        self.check(&params)?;
        let mut writer = SafetensorsWriter::create(path, specs, &BTreeMap::new())?;
        let order: Vec<String> = writer.tensors().iter().map(|spec| spec.name.clone()).collect();
        for name in order {
            let view = weights.tensor(&name)?;
            if self.factors.contains_key(&name) {
                let merged = self.merged(&name, &view)?;
                writer.write(&merged)?;
            } else {
                writer.write(&view.bytes)?;
            }
            weights.release(&name);
        }
        Ok(writer.finish()?)
    }

    /// The bytes of an adapted weight, in its own type.
    fn merged(&self, name: &str, view: &TensorView<'_>) -> Result<Vec<u8>, Error> {
        let fail = |reason: String| Error::Weight { name: name.to_owned(), reason };
        let no_float = || fail(format!("is {}, expected a float type", view.dtype));
        let mut values = view.to_f32().ok_or_else(no_float)?;
        self.merge(name, &mut values);
        let (bytes, stored) = to_stored(&values, view.dtype).ok_or_else(no_float)?;
        match stored.iter().position(|value| !value.is_finite()) {
            None => Ok(bytes),
            Some(at) => Err(fail(format!(
                "element {at} becomes {}, which {} has no number for",
                values[at], view.dtype
            ))),
        }
    }
}

/// Shape and elements of the first and the second factor of a weight, as far as they were found.
type Pair = [Option<([usize; 2], Vec<f32>)>; 2];

/// Places in a pair.
const FIRST: usize = 0;
/// Names of the factors, by place.
pub(crate) const FACTORS: [&str; 2] = ["lora_A", "lora_B"];

/// What a file says of an adaptation besides its factors.
#[derive(Clone, Copy)]
pub(crate) struct Stated {
    pub(crate) rank: Option<usize>,
    pub(crate) alpha: Option<f64>,
}

impl Stated {
    /// What our files say.
    fn of_metadata(metadata: &BTreeMap<String, String>) -> Result<Stated, String> {
        fn number<T: std::str::FromStr>(
            metadata: &BTreeMap<String, String>,
            key: &str,
        ) -> Result<Option<T>, String> {
            let Some(text) = metadata.get(key) else { return Ok(None) };
            text.parse()
                .map(Some)
                .map_err(|_| format!("its metadata `{key}` is `{text}`, no number"))
        }
        Ok(Stated { rank: number(metadata, RANK)?, alpha: number(metadata, ALPHA)? })
    }
}

/// The weight that a tensor is a factor of, and its place in the pair.
fn target_of(name: &str) -> Option<(String, usize)> {
    let (module, factor) = bare(name)?.rsplit_once('.')?;
    let place = FACTORS.iter().position(|known| *known == factor)?;
    Some((format!("{module}.weight"), place))
}

/// A factor's shape as a matrix: axes of the first behind its rows are one, those of the second behind its
/// columns are 1, as convolutions have them.
fn matrix(place: usize, shape: &[usize]) -> Option<[usize; 2]> {
    let [rows, rest @ ..] = shape else { return None };
    let columns = if place == FIRST {
        rest.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?
    } else {
        rest.iter().skip(1).all(|&dim| dim == 1).then_some(*rest.first()?)?
    };
    (!rest.is_empty() && *rows > 0 && columns > 0).then_some([*rows, columns])
}

/// `values` as `dtype` stores them, and what is read back.
fn to_stored(values: &[f32], dtype: DType) -> Option<(Vec<u8>, Vec<f32>)> {
    let bytes: Vec<u8> = match dtype {
        DType::F64 => values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        _ => return None,
    };
    let view = TensorView { dtype, shape: vec![values.len()], bytes: Cow::Borrowed(&bytes[..]) };
    let read = view.to_f32()?;
    Some((bytes, read))
}
