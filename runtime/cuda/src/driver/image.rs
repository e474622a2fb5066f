//! An image of the engine as a function of the driver.

use std::ffi::{CString, c_uint, c_void};
use std::ptr;

use cudarc::driver::result;
use cudarc::driver::sys;
use engine::{Image, ImageKind};

use super::{code, failed, meaning};
use crate::error::Error;

/// Bytes for what the driver's compiler says of a PTX text.
const LOG_BYTES: usize = 8 << 10;

/// Loads `image` into the current context, and finds its `entry`.
pub(super) fn load(
    image: &Image,
    entry: &str,
    kernel: &str,
) -> Result<(sys::CUmodule, sys::CUfunction), Error> {
    let symbol = CString::new(entry)
        .map_err(|_| Error::Misuse(format!("the entry of kernel `{kernel}` has a NUL")))?;
    let module = match image.kind {
        // A cubin says where it ends, and the engine's reader has checked that it is right.
        ImageKind::Cubin => load_module(&image.bytes, image, kernel)?,
        ImageKind::Ptx => {
            let mut text = image.bytes.to_vec();
            text.push(0);
            load_module(&text, image, kernel)?
        }
    };
    // SAFETY: the module was loaded into the current context.
    match unsafe { result::module::get_function(module, symbol) } {
        Ok(function) => Ok((module, function)),
        Err(error) => {
            // SAFETY: nothing of the module is used any more.
            let _ = unsafe { result::module::unload(module) };
            Err(failed(format!("find entry `{entry}` of kernel `{kernel}`"))(error))
        }
    }
}

/// `bytes` are those of a whole cubin, or of a text with its NUL.
fn load_module(bytes: &[u8], image: &Image, kernel: &str) -> Result<sys::CUmodule, Error> {
    let mut module = ptr::null_mut();
    let mut log = [0u8; LOG_BYTES];
    use sys::CUjit_option_enum as Option;
    let mut options = [Option::CU_JIT_ERROR_LOG_BUFFER, Option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes a number by value where it takes a pointer.
    let mut values: [*mut c_void; 2] =
        [log.as_mut_ptr().cast(), ptr::without_provenance_mut(LOG_BYTES)];
    let n_options = options.len() as c_uint;
    // SAFETY: the image ends where it says (the engine's reader has checked a cubin, a text has its NUL), and
    // options and values have the number given; the log is as long as its size says.
    let outcome = unsafe {
        let image = bytes.as_ptr().cast();
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&raw mut module, image, n_options, options, values).result()
    };
    outcome.map_err(|error| {
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(LOG_BYTES);
        let log = String::from_utf8_lossy(&log[..end]);
        let log = log.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = if log.is_empty() { String::new() } else { format!("; {log}") };
        let doing = format!("load kernel `{kernel}` for {}", image.arch);
        Error::Driver { doing, code: code(error), meaning: meaning(error) + &said }
    })?;
    Ok(module)
}
