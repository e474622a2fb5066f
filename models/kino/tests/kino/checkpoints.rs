//! `kino sample` with weights from files, in the forms that they are published in.

#[path = "../../../checkpoint/tests/torch_file/mod.rs"]
mod torch_file;

use std::fs;

use checkpoint::{Checkpoint, DType};

use crate::program::{EMBEDDED, PROMPT, Program};

/// The embedded transformer as a training run saves it.
fn transformer_pth() -> Vec<u8> {
    let checkpoint = Checkpoint::open(format!("{EMBEDDED}/transformer")).unwrap();
    let views: Vec<_> = checkpoint
        .tensors()
        .map(|info| (info.name.to_string(), checkpoint.tensor(info.name).unwrap()))
        .collect();
    let tensors: Vec<_> = views
        .iter()
        .map(|(name, view)| {
            let class = match view.dtype {
                DType::BF16 => "BFloat16Storage",
                DType::F32 => "FloatStorage",
                other => panic!("{name} is {other:?}"),
            };
            (name.as_str(), class, &view.shape[..], &view.bytes[..])
        })
        .collect();
    torch_file::state_dict(&tensors)
}

/// The latents' file and the frames of a run with `args`.
fn latents_and_frames(program: &Program, name: &str, args: &[&str]) -> Vec<Vec<u8>> {
    let (latents, frames) = (format!("{name}.safetensors"), format!("{name}/"));
    let settings = "--num-frames 2 --image-size 64 64 --fps 8 --frame-interval 1 \
                    --num-sampling-steps 2 --cfg-scale 2.5 --cfg-channel 4";
    let mut all = vec!["sample", PROMPT, "--save-latents", &latents, "--output", &frames];
    all.extend(settings.split_whitespace());
    all.extend(args);
    program.run(&all).done();
    let files = [latents, format!("{name}/frame_0000.png"), format!("{name}/frame_0001.png")];
    files.map(|file| fs::read(program.path(file)).unwrap()).to_vec()
}

#[test]
fn a_pth_transformer_with_separate_parts_samples_as_the_pipeline() {
    let program = Program::new();
    let folder = program.path("transformer");
    fs::create_dir(&folder).unwrap();
    let pth = transformer_pth();
    fs::write(folder.join("ema.pth"), &pth).unwrap();
    fs::copy(format!("{EMBEDDED}/transformer/config.json"), folder.join("config.json")).unwrap();
    let [vae, text_encoder, tokenizer] = ["vae", "text_encoder", "tokenizer/tokenizer.json"]
        .map(|part| format!("{EMBEDDED}/{part}"));
    let parts = ["--vae", &vae, "--text-encoder", &text_encoder, "--tokenizer", &tokenizer];
    let run = |name: &str, args: &[&str]| latents_and_frames(&program, name, args);
    let separate =
        |name: &str, path: &str| run(name, &[&parts[..], &["--ckpt-path", path]].concat());

    let embedded = run("embedded", &[]);
    assert!(separate("with_config", "transformer") == embedded, "the file's video is another");

    // A bare file has no configuration, and no tensor tells the unit of positions: it is that of the
    // published models.
    fs::write(program.path("bare.pth"), &pth).unwrap();
    let bare = separate("bare", "bare.pth");
    assert!(bare != embedded, "the unit of positions has no effect");
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let published = config.replace("\"input_sq_size\": 64", "\"input_sq_size\": 512");
    assert_ne!(published, config);
    fs::write(folder.join("config.json"), published).unwrap();
    assert!(separate("published", "transformer") == bare, "the unit is not the published one");
    program.run(&["sample", "--from", "bare/", "--output", "again/"]).done();
    let again = fs::read(program.path("again/frame_0001.png")).unwrap();
    assert!(again == bare[2], "the frames' metadata sample another video");
}

#[test]
fn a_pth_without_its_parts_says_which_are_missing() {
    let program = Program::new();
    fs::write(program.path("bare.pth"), transformer_pth()).unwrap();
    let text_encoder = format!("{EMBEDDED}/text_encoder");
    let bare = ["sample", PROMPT, "--ckpt-path", "bare.pth"];
    program.run(&bare).failed(2, "no text encoder: give --text-encoder");
    let encoded = [&bare[..], &["--text-encoder", &text_encoder]].concat();
    program.run(&encoded).failed(2, "no VAE: give --vae");
    let vae = format!("{EMBEDDED}/vae");
    let decoded = [&encoded[..], &["--vae", &vae]].concat();
    program.run(&decoded).failed(2, "give --tokenizer");
    let tokenizer = format!("{EMBEDDED}/tokenizer");
    let swapped =
        ["--text-encoder", &text_encoder, "--vae", &text_encoder, "--tokenizer", &tokenizer];
    program.run(&[&bare[..], &swapped].concat()).failed(1, "expected an AutoencoderKL");
}
