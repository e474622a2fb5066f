//! The text files of the Flare game that say where the poses of a figure are in its atlas.
//!
//! ```text
//! image=images/enemies/zombie.png
//!
//! [stance]
//! type=back_forth
//! frame=0,4,293,702,28,51,7,47     number, direction, then x, y, width, height, and the point on the ground
//! ```

use std::collections::BTreeMap;

use super::DIRECTIONS;

/// Largest coordinate in an atlas.
const MAX_COORDINATE: i32 = 1 << 15;

/// What one file says.
#[derive(Debug)]
pub(super) struct Animations {
    /// The atlas, below the folder of its mod.
    pub(super) image: String,
    /// By name, such as `stance`.
    pub(super) actions: BTreeMap<String, Action>,
}

/// The poses of one action.
#[derive(Default, Debug)]
pub(super) struct Action {
    /// Whether it is played back and forth.
    pub(super) returns: bool,
    /// By direction, then in order of time.
    pub(super) poses: [Vec<Pose>; DIRECTIONS.len()],
}

/// Where a pose is in the atlas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pose {
    /// Left column and top row.
    pub(super) from: [usize; 2],
    /// Width and height.
    pub(super) size: [usize; 2],
    /// From the left top corner to the point where the figure stands.
    pub(super) ground: [i32; 2],
}

/// Reads a file's text; the error names the line.
pub(super) fn parse(text: &str) -> Result<Animations, String> {
    let mut image = None;
    let mut actions: BTreeMap<String, Action> = BTreeMap::new();
    let mut current: Option<String> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let fail = |reason: &str| format!("line {}: {reason}", index + 1);
        if let Some(name) = line.strip_prefix('[') {
            let name = name.trim_end_matches(']').to_owned();
            actions.insert(name.clone(), Action::default());
            current = Some(name);
        } else if let Some(path) = line.strip_prefix("image=") {
            image = Some(path.to_owned());
        } else if let Some((key @ ("type" | "frame"), value)) = line.split_once('=') {
            let action = current.as_ref().and_then(|name| actions.get_mut(name));
            let action = action.ok_or_else(|| fail("expected a name in brackets before it"))?;
            if key == "type" {
                action.returns = value == "back_forth";
                continue;
            }
            let (direction, pose) = pose(value).ok_or_else(|| {
                fail("expected frame=number,direction,x,y,width,height,x,y in an atlas")
            })?;
            action.poses[direction].push(pose);
        }
    }
    let image = image.ok_or("names no image")?;
    Ok(Animations { image, actions })
}

/// The value of a `frame` line.
fn pose(value: &str) -> Option<(usize, Pose)> {
    let numbers: Vec<i32> =
        value.split(',').map(|number| number.trim().parse().ok()).collect::<Option<_>>()?;
    let &[_, direction, x, y, width, height, ground_x, ground_y] = numbers.as_slice() else {
        return None;
    };
    let side =
        |value: i32| (0..=MAX_COORDINATE).contains(&value).then_some(value.unsigned_abs() as usize);
    let is_near = |value: i32| (-MAX_COORDINATE..=MAX_COORDINATE).contains(&value);
    if !is_near(ground_x) || !is_near(ground_y) {
        return None;
    }
    let direction = side(direction).filter(|&direction| direction < DIRECTIONS.len())?;
    let (from, size) = ([side(x)?, side(y)?], [side(width)?, side(height)?]);
    Some((direction, Pose { from, size, ground: [ground_x, ground_y] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_poses() {
        let text = "image=images/a.png\n\n[stance]\nframes=2\nduration=533ms\ntype=back_forth\n\
                    frame=0,4,293,702,28,51,7,-47\nframe=1,4,1,2,3,4,5,6\n[run]\nframe=0,0,0,0,1,1,0,0\n";
        let found = parse(text).unwrap();
        assert_eq!(found.image, "images/a.png");
        let stance = &found.actions["stance"];
        assert!(stance.returns && !found.actions["run"].returns);
        let first = Pose { from: [293, 702], size: [28, 51], ground: [7, -47] };
        assert_eq!((stance.poses[4].len(), stance.poses[4][0]), (2, first));
    }

    #[test]
    fn what_is_no_animation_names_its_line() {
        for (text, expected) in [
            ("[run]\n", "names no image"),
            ("image=a\nframe=0,0,0,0,1,1,0,0", "line 2: expected a name in brackets"),
            ("image=a\n[run]\nframe=0,8,0,0,1,1,0,0", "line 3: expected frame="),
            ("image=a\n[run]\nframe=0,0,0,0,1,1,0", "line 3"),
            ("image=a\n[run]\nframe=0,0,-1,0,1,1,0,0", "line 3"),
            ("image=a\n[run]\nframe=0,0,0,0,99999999,1,0,0", "line 3"),
            ("image=a\n[run]\nframe=0,0,0,0,1,1,0,-2147483648", "line 3"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
