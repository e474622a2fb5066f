//! Records `tests/golden/tiny_flare_t2v/embedded.safetensors`: runs of the embedded model, evaluated by
//! the interpreter in f64. It takes minutes.
//!
//! ```text
//! cargo run --release -p tests --example record_whole_run
//! ```
//!
//! Prompt, settings and noise are those of the folder's case. `t2v.*` is the case itself on the
//! embedded weights; `i2v.*` is given the case's first frame, and edits its second from half way.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::{DType, TensorView, write_safetensors};
use tests::whole_run::{Case, Interpreted, embedded, frames_u8};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tiny_flare_t2v");
    let case = Case::open(&folder);
    let model = embedded();
    let mut tensors: BTreeMap<String, TensorView<'_>> = BTreeMap::new();
    let mut put = |name: &str, shape: &[usize], dtype: DType, bytes: Vec<u8>| {
        let view = TensorView { dtype, shape: shape.to_vec(), bytes: Cow::Owned(bytes) };
        tensors.insert(name.to_string(), view);
    };
    let f32s = |values: &[f64]| -> Vec<u8> {
        values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect()
    };

    let run = Interpreted::new(&model, &case, false);
    let (features, mask) = run.text(&case.prompt());
    let latents = run.denoise((&features, &mask), |number| case.draw(number), None);
    put("t2v.latents", &[4, 8, 16, 16], DType::F32, f32s(&latents));
    let frames = run.decode(&latents);
    put("t2v.frames_u8", &[8, 64, 64, 3], DType::U8, frames_u8(&frames, 64 * 64));

    let run = Interpreted::new(&model, &case, true);
    let given = run.encode(&case.frame("out.frames_u8", 0));
    put("i2v.given", &[4, 16, 16], DType::F32, f32s(&given));
    let ratios = [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    // The same picture for both frames.
    let placed: Vec<f64> = given.chunks_exact(256).flat_map(|plane| plane.repeat(8)).collect();
    let draw = |number| case.masked_draw(number);
    let latents = run.denoise((&features, &mask), draw, Some((&placed, &ratios)));
    put("i2v.latents", &[4, 8, 16, 16], DType::F32, f32s(&latents));

    write_safetensors(&folder.join("embedded.safetensors"), &tensors, &BTreeMap::new())?;
    Ok(())
}
