//! Counts of agreement, with intervals, as a table and as JSON.

use std::fmt::Write;

use data::flare::Subject;
use serde_json::{Value, json};

use crate::classifier::Verdict;
use crate::generator::Continued;
use crate::labels::{HEADS, Head, Subjects};

/// The two-sided 95 % quantile of a normal distribution.
const QUANTILE: f64 = 1.959_963_985;

/// How many of some clips show what they should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// That do.
    pub n_agreeing: usize,
    /// All.
    pub n: usize,
}

impl Agreement {
    /// The share that does; 0 of none.
    pub fn share(self) -> f64 {
        self.n_agreeing as f64 / (self.n as f64).max(1.0)
    }

    /// The 95 % interval of the share: "Probable Inference, the Law of Succession, and Statistical Inference"
    /// (Wilson, 1927), which holds near 0 and 1 too.
    pub fn interval(self) -> [f64; 2] {
        let n = (self.n as f64).max(1.0);
        let (p, z2) = (self.share(), QUANTILE * QUANTILE);
        let center = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let spread = p * (1.0 - p) / n + z2 / (4.0 * n * n);
        let half = QUANTILE * spread.sqrt() / (1.0 + z2 / n);
        [(center - half).max(0.0), (center + half).min(1.0)]
    }
}

/// The verdicts on some clips.
#[derive(Clone, Debug)]
pub struct Judged {
    /// What clips they are.
    pub title: String,
    /// What each was asked to show, and what it shows.
    pub verdicts: Vec<(Subject, Verdict)>,
}

impl Judged {
    /// How many agree in one head.
    pub fn agreement(&self, head: Head) -> Agreement {
        let agrees = |(subject, verdict): &&(Subject, Verdict)| verdict.agrees(head, *subject);
        let n_agreeing = self.verdicts.iter().filter(agrees).count();
        Agreement { n_agreeing, n: self.verdicts.len() }
    }

    /// How many agree in every head.
    pub fn agreement_in_all(&self) -> Agreement {
        let agrees = |(subject, verdict): &&(Subject, Verdict)| {
            HEADS.iter().all(|&head| verdict.agrees(head, *subject))
        };
        let n_agreeing = self.verdicts.iter().filter(agrees).count();
        Agreement { n_agreeing, n: self.verdicts.len() }
    }

    /// How often each class was taken for each: rows are what was asked for.
    pub fn confusion(&self, head: Head) -> Vec<Vec<usize>> {
        let mut counts = vec![vec![0; head.n_classes()]; head.n_classes()];
        for (subject, verdict) in &self.verdicts {
            counts[head.class(*subject)][verdict.class(head)] += 1;
        }
        counts
    }

    fn to_json(&self) -> Value {
        let number = |agreement: Agreement| {
            let [low, high] = agreement.interval();
            json!({
                "agreeing": agreement.n_agreeing, "clips": agreement.n, "share": agreement.share(),
                "low": low, "high": high,
            })
        };
        let mut heads = serde_json::Map::new();
        for head in HEADS {
            let mut entry = number(self.agreement(head));
            entry["confusion"] = json!(self.confusion(head));
            heads.insert(head.name().into(), entry);
        }
        json!({ "title": self.title, "heads": heads, "all": number(self.agreement_in_all()) })
    }
}

/// How well first frames are kept.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct FirstFrames {
    /// Mean and least signal-to-noise ratio against what was given, in dB.
    pub psnr: [f64; 2],
    /// Largest difference in a latent.
    pub latent_error: f32,
}

impl FirstFrames {
    /// Of clips, at least one.
    pub fn of(continued: &[Continued]) -> FirstFrames {
        let ratios = continued.iter().map(|continued| continued.psnr);
        let mean = ratios.clone().sum::<f64>() / continued.len() as f64;
        let least = ratios.fold(f64::INFINITY, f64::min);
        let errors = continued.iter().map(|continued| continued.latent_error);
        FirstFrames { psnr: [mean, least], latent_error: errors.fold(0.0, f32::max) }
    }
}

/// What is said of one model.
#[derive(Clone, Debug)]
pub struct ModelReport {
    /// Its name.
    pub name: String,
    /// Steps and guidance that it was sampled with.
    pub settings: (usize, f64),
    /// Its clips for prompts, and those whose first frame was given.
    pub judged: Vec<Judged>,
    /// How first frames are kept, if any were given.
    pub first_frames: Option<FirstFrames>,
}

/// Everything that is said.
#[derive(Clone, Debug)]
pub struct Report {
    /// Parameters of the classifier.
    pub n_parameters: usize,
    /// How it was made.
    pub about: Vec<(String, String)>,
    /// Real clips that it was not trained with.
    pub held_out: Vec<Judged>,
    /// How often a guess is right, head by head.
    pub chance: [f64; HEADS.len()],
    /// Models.
    pub models: Vec<ModelReport>,
}

impl Report {
    /// What guesses reach on balanced prompts for these subjects.
    pub fn chance_of(subjects: &Subjects) -> [f64; HEADS.len()] {
        HEADS.map(|head| subjects.chance(head))
    }

    /// A table: a row for each set of clips, a column for each head.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let about: Vec<String> =
            self.about.iter().map(|(key, value)| format!("{key} {value}")).collect();
        let millions = self.n_parameters as f64 / 1e6;
        line(&mut text, format_args!("judge: {millions:.2} M parameters, {}", about.join(", ")));
        let title = |name: &str| format!("{name:<44} clips");
        let heads = HEADS.map(|head| format!("{:>22}", head.name())).concat();
        line(&mut text, format_args!("{}{heads}{:>22}", title("agreement in % (95 %)"), "all"));
        for judged in &self.held_out {
            row(&mut text, judged);
        }
        let chance = self.chance.map(|share| format!("{:>22}", format!("{:.1}", 100.0 * share)));
        line(&mut text, format_args!("{:<44}      {}", "a guess on prompts", chance.concat()));
        for model in &self.models {
            for judged in &model.judged {
                row(&mut text, judged);
            }
            if let Some(FirstFrames { psnr: [mean, least], latent_error }) = model.first_frames {
                line(
                    &mut text,
                    format_args!(
                        "  first frames against those given: {mean:.1} dB on average, {least:.1} dB at least; \
                         latents differ by {latent_error:.1e} at most"
                    ),
                );
            }
        }
        text
    }

    /// The same as one document.
    pub fn to_json(&self) -> Value {
        let list = |judged: &[Judged]| judged.iter().map(Judged::to_json).collect::<Vec<_>>();
        let model = |model: &ModelReport| {
            let first_frames = model.first_frames.map(|first| {
                let FirstFrames { psnr: [mean, least], latent_error } = first;
                json!({ "psnr_mean": mean, "psnr_least": least, "latent_error": latent_error })
            });
            let (steps, cfg_scale) = model.settings;
            json!({
                "name": model.name, "steps": steps, "cfg_scale": cfg_scale,
                "judged": list(&model.judged), "first_frames": first_frames,
            })
        };
        let about: serde_json::Map<String, Value> =
            self.about.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let classes = |head: Head| {
            let names: Vec<&str> = (0..head.n_classes()).map(|at| head.class_name(at)).collect();
            (head.name().to_owned(), json!(names))
        };
        let classes: serde_json::Map<String, Value> = HEADS.into_iter().map(classes).collect();
        json!({
            "judge": { "parameters": self.n_parameters, "about": about },
            "classes": classes,
            "held_out": list(&self.held_out),
            "chance": self.chance,
            "models": self.models.iter().map(model).collect::<Vec<_>>(),
        })
    }
}

fn row(text: &mut String, judged: &Judged) {
    let number = |agreement: Agreement| {
        let [low, high] = agreement.interval().map(|share| 100.0 * share);
        format!("{:>22}", format!("{:.1} ({low:.1}-{high:.1})", 100.0 * agreement.share()))
    };
    let heads = HEADS.map(|head| number(judged.agreement(head))).concat();
    let all = number(judged.agreement_in_all());
    line(text, format_args!("{:<44} {:>5}{heads}{all}", judged.title, judged.verdicts.len()));
}

fn line(text: &mut String, args: std::fmt::Arguments<'_>) {
    writeln!(text, "{args}").expect("a string takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        let of = |n_agreeing, n| Agreement { n_agreeing, n }.interval();
        let close = |[low, high]: [f64; 2], expected: [f64; 2]| {
            assert!((low - expected[0]).abs() < 5e-5, "{low} {expected:?}");
            assert!((high - expected[1]).abs() < 5e-5, "{high} {expected:?}");
        };
        // Worked out apart from this code.
        close(of(120, 200), [0.53084, 0.66539]);
        close(of(0, 10), [0.0, 0.27753]);
        close(of(10, 10), [0.72247, 1.0]);
        assert_eq!(of(0, 0)[0], 0.0);
    }
}
