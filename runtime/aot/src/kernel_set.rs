//! Distinct kernels of several generations: each function emitted once, each text compiled once for each
//! generation that launches it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use cuda_kernels::{Compiled, Nvrtc, Source, emit};
use kernels::cuda::{Function, Gpu};

use crate::{Cache, Error};

/// How far a compilation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Texts that have code, for one generation each.
    pub done: usize,
    /// All of them.
    pub all: usize,
}

/// A kernel, by its text.
#[derive(Clone, Debug)]
pub struct Distinct {
    /// The first function that came out as this text.
    pub function: Function,
    /// The text.
    pub source: Source,
    /// Generations that launch it.
    pub gpus: BTreeSet<Gpu>,
}

/// Functions, of which those that come out as the same text are one kernel.
#[derive(Debug, Default)]
pub struct KernelSet {
    kernels: Vec<Distinct>,
    /// Positions by text.
    texts: BTreeMap<String, usize>,
    /// Positions by everything a function is compiled for.
    functions: BTreeMap<(Gpu, String), usize>,
}

impl KernelSet {
    /// Adds `function` as `gpu` launches it, and returns the position of its kernel.
    ///
    /// # Errors
    /// [`Error::Code`] if it cannot be emitted.
    pub fn add(&mut self, function: &Function, gpu: Gpu) -> Result<usize, Error> {
        // Debug output names every field, so it tells functions apart as their code does.
        let key = (gpu, format!("{function:?}"));
        if let Some(&at) = self.functions.get(&key) {
            return Ok(at);
        }
        let at = self.add_emitted(function, emit(function, gpu)?, gpu);
        self.functions.insert(key, at);
        Ok(at)
    }

    /// Adds `function`, of which `source` was emitted for `gpu`.
    pub(crate) fn add_emitted(&mut self, function: &Function, source: Source, gpu: Gpu) -> usize {
        let at = *self.texts.entry(identity(function, &source)).or_insert_with(|| {
            let function = function.clone();
            self.kernels.push(Distinct { function, source, gpus: BTreeSet::new() });
            self.kernels.len() - 1
        });
        self.kernels[at].gpus.insert(gpu);
        at
    }

    /// The kernels, in the order in which they were added.
    pub fn kernels(&self) -> &[Distinct] {
        &self.kernels
    }

    /// Texts to compile, each counted once for each generation.
    pub fn compilations(&self) -> usize {
        self.kernels.iter().map(|kernel| kernel.gpus.len()).sum()
    }

    /// The code of every kernel for each generation that launches it, compiled on `threads` threads.
    ///
    /// # Errors
    /// [`Error::Code`] for the first text that does not compile.
    pub fn compile(
        &self,
        nvrtc: &Nvrtc,
        cache: Option<&Cache>,
        threads: usize,
        on_progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<BTreeMap<Gpu, Compiled>>, Error> {
        let kernels = self.kernels.iter().enumerate();
        let tasks: Vec<(usize, Gpu)> = kernels
            .flat_map(|(at, kernel)| kernel.gpus.iter().map(move |&gpu| (at, gpu)))
            .collect();
        let all = tasks.len();
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let results: Mutex<Vec<BTreeMap<Gpu, Compiled>>> =
            Mutex::new(vec![BTreeMap::new(); self.kernels.len()]);
        let failures: Mutex<BTreeMap<usize, cuda_kernels::Error>> = Mutex::default();
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(&(at, gpu)) = tasks.get(index) else { break };
                match compile(&self.kernels[at].source, gpu, nvrtc, cache) {
                    Ok(compiled) => {
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        results[at].insert(gpu, compiled);
                    }
                    Err(error) => {
                        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                        failures.insert(index, error);
                    }
                }
                on_progress(Progress { done: done.fetch_add(1, Ordering::Relaxed) + 1, all });
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, all.max(1)) {
                scope.spawn(work);
            }
        });
        let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = failures.into_values().next() {
            return Err(error.into());
        }
        Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Everything that makes a kernel another one.
pub(crate) fn identity(function: &Function, source: &Source) -> String {
    format!("{:?} {} {}", function.block(), source.shared_bytes, source.text)
}

/// The code of one text, from the cache if it is there.
fn compile(
    source: &Source,
    gpu: Gpu,
    nvrtc: &Nvrtc,
    cache: Option<&Cache>,
) -> Result<Compiled, cuda_kernels::Error> {
    if let Some(kept) = cache.and_then(|cache| cache.get(source, gpu)) {
        return Ok(kept);
    }
    let compiled = nvrtc.compile(source, gpu)?;
    if let Some(cache) = cache {
        cache.put(source, gpu, &compiled);
    }
    Ok(compiled)
}
