//! The models that can be trained.

use models::config::{Stdit, Stdit1, Stdit2};
use models::{Bucket, stdit1, stdit2};
use ops::Graph;

/// A diffusion transformer and its hyper-parameters.
#[derive(Clone, PartialEq, Debug)]
pub enum Model {
    /// `STDiT`, Open-Sora 1.0.
    Stdit1(Stdit1),
    /// `STDiT-2`, Open-Sora 1.1.
    Stdit2(Stdit2),
}

impl Model {
    /// What all generations have in common.
    pub fn common(&self) -> &Stdit {
        match self {
            Model::Stdit1(config) => &config.common,
            Model::Stdit2(config) => &config.common,
        }
    }

    /// The model alone for one bucket.
    ///
    /// # Errors
    /// Refuses a bucket of which the model has no graph.
    pub fn graph(&self, bucket: &Bucket) -> Result<Graph, models::Error> {
        match self {
            Model::Stdit1(config) => stdit1::graph(config, bucket),
            Model::Stdit2(config) => stdit2::graph(config, bucket),
        }
    }

    /// Names and shapes of the parameters that sampling needs, in the order of the model.
    ///
    /// # Errors
    /// As [`Model::graph`].
    pub fn params(&self) -> Result<Vec<(String, Vec<usize>)>, models::Error> {
        match self {
            Model::Stdit1(config) => stdit1::params(config),
            Model::Stdit2(config) => stdit2::params(config),
        }
    }
}
