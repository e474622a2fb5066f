//! Recipes by name, of runs that were published and of the embedded model: the files of the folder `configs`.

use crate::{Error, Recipe};

/// Every one: name and text, sorted by name.
pub const PUBLISHED: [(&str, &str); 14] = [
    ("brickfilm-360p-32f-stage1", include_str!("../configs/brickfilm-360p-32f-stage1.toml")),
    ("brickfilm-360p-32f-stage2", include_str!("../configs/brickfilm-360p-32f-stage2.toml")),
    ("brickfilm-360p-64f-stage1", include_str!("../configs/brickfilm-360p-64f-stage1.toml")),
    ("brickfilm-360p-64f-stage2", include_str!("../configs/brickfilm-360p-64f-stage2.toml")),
    ("flare", include_str!("../configs/flare.toml")),
    ("flare-vae", include_str!("../configs/flare-vae.toml")),
    ("opensora-1.0-16x256x256", include_str!("../configs/opensora-1.0-16x256x256.toml")),
    ("opensora-1.0-16x512x512", include_str!("../configs/opensora-1.0-16x512x512.toml")),
    ("opensora-1.0-64x512x512", include_str!("../configs/opensora-1.0-64x512x512.toml")),
    ("opensora-1.1-lora", include_str!("../configs/opensora-1.1-lora.toml")),
    ("opensora-1.1-stage1", include_str!("../configs/opensora-1.1-stage1.toml")),
    ("opensora-1.1-stage2", include_str!("../configs/opensora-1.1-stage2.toml")),
    ("opensora-1.1-stage3", include_str!("../configs/opensora-1.1-stage3.toml")),
    ("tiny-flare", include_str!("../configs/tiny-flare.toml")),
];

/// The recipe called `name`.
///
/// # Errors
/// For an unknown name, the nearest known one.
pub fn find(name: &str) -> Result<Recipe, Error> {
    let known = PUBLISHED.iter().find(|(known, _)| *known == name);
    let Some((_, text)) = known else {
        let meant = models::nearest::nearest(name, PUBLISHED.iter().map(|(known, _)| *known));
        return Err(Error::Recipe(format!("`{name}` is unknown; did you mean `{meant}`?")));
    };
    Recipe::parse(text)
}
