//! The names a pickle may refer to: the whole list, and what stands for each.

use crate::{DType, Error};

/// The meaning of an allowed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    OrderedDict,
    Tensor(TensorForm),
    /// A typed storage class.
    Storage(DType),
    Size,
    /// Allowed because real checkpoints hold it beside their tensors; calling it gives an opaque value.
    Inert,
}

/// Which of torch's functions describes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorForm {
    /// `(storage, offset, shape, strides, ...)`
    Plain,
    /// `(tensor, requires_grad, hooks, ...)`
    Parameter,
}

/// Storage classes, in `torch` and in `torch.cuda`.
const STORAGES: [(&str, DType); 10] = [
    ("DoubleStorage", DType::F64),
    ("FloatStorage", DType::F32),
    ("HalfStorage", DType::F16),
    ("BFloat16Storage", DType::BF16),
    ("LongStorage", DType::I64),
    ("IntStorage", DType::I32),
    ("ShortStorage", DType::I16),
    ("CharStorage", DType::I8),
    ("ByteStorage", DType::U8),
    ("BoolStorage", DType::Bool),
];

const GLOBALS: [(&str, &str, Global); 13] = [
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor", Global::Tensor(TensorForm::Plain)),
    ("torch._utils", "_rebuild_tensor_v2", Global::Tensor(TensorForm::Plain)),
    ("torch._utils", "_rebuild_parameter", Global::Tensor(TensorForm::Parameter)),
    ("torch._utils", "_rebuild_parameter_with_state", Global::Tensor(TensorForm::Parameter)),
    ("torch", "Size", Global::Size),
    ("torch", "device", Global::Inert),
    ("torch.serialization", "_get_layout", Global::Inert),
    ("argparse", "Namespace", Global::Inert),
    ("_codecs", "encode", Global::Inert),
    ("numpy", "dtype", Global::Inert),
    ("numpy.core.multiarray", "scalar", Global::Inert),
    ("numpy._core.multiarray", "scalar", Global::Inert),
];

/// Names of torch's dtype objects, which appear as values in saved settings.
const DTYPES: [&str; 18] = [
    "float64",
    "double",
    "float32",
    "float",
    "float16",
    "half",
    "bfloat16",
    "int64",
    "long",
    "int32",
    "int",
    "int16",
    "short",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
];

impl Global {
    /// The meaning of `module.name`, or the refusal that names it.
    pub(crate) fn find(module: &str, name: &str) -> Result<Global, Error> {
        if matches!(module, "torch" | "torch.cuda")
            && let Some((_, dtype)) = STORAGES.iter().find(|row| row.0 == name)
        {
            return Ok(Global::Storage(*dtype));
        }
        if module == "torch" && DTYPES.contains(&name) {
            return Ok(Global::Inert);
        }
        let row = GLOBALS.iter().find(|row| row.0 == module && row.1 == name);
        row.map(|row| row.2).ok_or_else(|| {
            // A hostile name may be megabytes long; the message need not be.
            let short = |text: &str| text.chars().take(100).collect();
            Error::ForbiddenGlobal { module: short(module), name: short(name) }
        })
    }
}
