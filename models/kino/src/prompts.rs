//! The prompts of a request: from the command line and files to the text that is encoded.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use text::Tokenizer;
use text::prompts::{Loops, Suffixed, check_prompt, read_prompts, split_suffix};

use crate::failure::{Failure, Outcome};
use crate::options::SampleOptions;

/// Most bytes that are read of a prompt file; the reader of its text sets the real limit.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// One prompt.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    /// Its place in the list that the user gave, from 0.
    pub index: usize,
    /// As typed.
    pub typed: String,
    /// As encoded, loop by loop.
    pub texts: Loops,
    /// References that it names itself; empty for none.
    pub reference_path: String,
    /// The strategy that it names itself; empty for none.
    pub mask_strategy: String,
}

/// The prompts that are asked for, cleaned, and how many the whole list has.
pub(crate) fn gather(options: &SampleOptions) -> Outcome<(Vec<Prompt>, usize)> {
    let typed = match (&options.prompt_path, options.prompt.is_empty()) {
        (Some(_), false) => {
            return Err(Failure::usage("give prompts or --prompt-path, not both"));
        }
        (Some(path), true) => read_file(path)?,
        (None, false) => options.prompt.clone(),
        (None, true) => {
            return Err(Failure::usage(
                "no prompt: say what the video shows, as in kino sample \"a zombie runs to the left \
                 on green grass\"",
            ));
        }
    };
    let count = typed.len();
    let start = options.start_index.unwrap_or(0);
    let end = options.end_index.unwrap_or(count).min(count);
    if start >= end {
        let end = options.end_index.unwrap_or(count);
        return Err(Failure::usage(format!(
            "prompts {start} to {end} (--start-index, --end-index) are none of the {count}"
        )));
    }
    let chosen = typed.into_iter().enumerate().skip(start).take(end - start);
    let n_loops = options.n_loops.unwrap_or(1);
    let prompts: Outcome<_> = chosen
        .map(|(index, typed)| clean(index, typed, !options.no_clean_caption, n_loops))
        .collect();
    Ok((prompts?, count))
}

fn read_file(path: &Path) -> Outcome<Vec<String>> {
    let fail = |reason: &dyn std::fmt::Display| {
        Failure::Run(anyhow::anyhow!("--prompt-path {}: {reason}", path.display()))
    };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| fail(&error))?;
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|error| fail(&error))?;
    read_prompts(&bytes).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

fn clean(index: usize, typed: String, clean: bool, n_loops: usize) -> Outcome<Prompt> {
    let fail = |reason: String| Failure::Usage(format!("prompt {}: {reason}", index + 1));
    check_prompt(&typed).map_err(|error| fail(error.to_string()))?;
    let parts = split_suffix(&typed).map_err(|error| fail(error.to_string()))?;
    let loops = Loops::split(&parts.text).map_err(|error| fail(error.to_string()))?;
    if loops.last_loop() >= n_loops {
        return Err(fail(format!(
            "a text is for loop {}, the video has {n_loops}, counted from 0 (--loop)",
            loops.last_loop()
        )));
    }
    let texts = loops.map(|text| text::text_preprocessing(text, clean));
    if texts.texts().any(str::is_empty) {
        return Err(fail(
            "nothing is left of it after caption cleaning; use other words or --no-clean-caption"
                .into(),
        ));
    }
    let Suffixed { reference_path, mask_strategy, .. } = parts;
    Ok(Prompt { index, typed, texts, reference_path, mask_strategy })
}

/// Every text to encode, once, in order.
pub(crate) fn texts(prompts: &[Prompt]) -> Vec<&str> {
    let texts: BTreeSet<&str> = prompts.iter().flat_map(|prompt| prompt.texts.texts()).collect();
    texts.into_iter().collect()
}

/// A warning for each prompt of which the text encoder reads only the beginning.
pub(crate) fn truncations(
    prompts: &[Prompt],
    tokenizer: &Tokenizer,
    limit: usize,
) -> Outcome<Vec<String>> {
    let mut warnings = Vec::new();
    for prompt in prompts {
        let counts = prompt.texts.texts().map(|text| Ok(tokenizer.ids(text)?.len()));
        let counts: Outcome<Vec<usize>> = counts.collect();
        let count = counts?.into_iter().max().unwrap_or(0);
        if count > limit {
            warnings.push(format!(
                "prompt {} has {count} tokens; the model reads the first {limit}",
                prompt.index + 1
            ));
        }
    }
    Ok(warnings)
}
