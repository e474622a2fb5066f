//! What clips show, and how their captions say it.

/// A creature: its name in captions, and the atlases it is drawn with, from the lowest up, as mod, folder
/// and name.
#[derive(Debug)]
pub struct Creature {
    /// The name.
    pub name: &'static str,
    pub(super) layers: &'static [&'static str],
}

/// Every creature, in the order of the data set.
pub const CREATURES: [Creature; 10] = [
    Creature { name: "goblin", layers: &["fantasycore/enemies/goblin"] },
    Creature { name: "zombie", layers: &["fantasycore/enemies/zombie"] },
    Creature { name: "skeleton", layers: &["fantasycore/enemies/skeleton"] },
    Creature { name: "minotaur", layers: &["fantasycore/enemies/minotaur"] },
    Creature { name: "fire ant", layers: &["fantasycore/enemies/fire_ant"] },
    Creature { name: "ice ant", layers: &["fantasycore/enemies/ice_ant"] },
    Creature { name: "wyvern", layers: &["fantasycore/enemies/wyvern"] },
    Creature { name: "hobgoblin", layers: &["empyrean_campaign/enemies/hobgoblin"] },
    Creature {
        name: "knight",
        layers: &[
            "fantasycore/avatar/male/plate_boots",
            "fantasycore/avatar/male/plate_greaves",
            "fantasycore/avatar/male/plate_cuirass",
            "fantasycore/avatar/male/plate_gauntlets",
            "fantasycore/avatar/male/plate_helm",
            "fantasycore/avatar/male/longsword",
        ],
    },
    Creature {
        name: "sorceress",
        layers: &[
            "fantasycore/avatar/female/mage_boots",
            "fantasycore/avatar/female/mage_skirt",
            "fantasycore/avatar/female/mage_vest",
            "fantasycore/avatar/female/mage_sleeves",
            "fantasycore/avatar/female/head_long",
            "fantasycore/avatar/female/staff",
        ],
    },
];

/// An action: its name, the game's name of it, and the verb in two forms.
#[derive(Debug)]
pub struct ActionName {
    /// The name in tables.
    pub name: &'static str,
    pub(super) animation: &'static str,
    verb: &'static str,
    participle: &'static str,
}

const fn action(
    name: &'static str,
    animation: &'static str,
    verb: &'static str,
    participle: &'static str,
) -> ActionName {
    ActionName { name, animation, verb, participle }
}

/// Every action, in the order of the data set.
pub const ACTIONS: [ActionName; 4] = [
    action("stand", "stance", "stands", "standing"),
    action("run", "run", "runs", "running"),
    action("attack", "swing", "attacks", "attacking"),
    action("die", "die", "dies", "dying"),
];

/// Index of the action that goes somewhere.
const RUN: usize = 1;

/// Every direction, as the game numbers them: from the left on, clockwise.
pub const DIRECTIONS: [&str; 8] = [
    "left",
    "the upper left",
    "the top",
    "the upper right",
    "right",
    "the lower right",
    "the bottom",
    "the lower left",
];

/// Every ground, with its color in red, green and blue.
pub const GROUNDS: [(&str, [u8; 3]); 4] = [
    ("green grass", [74, 128, 62]),
    ("yellow sand", [214, 186, 120]),
    ("grey stone", [140, 140, 146]),
    ("a blue night", [34, 46, 96]),
];

/// What a clip shows, as indices into the lists above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subject {
    /// Of [`CREATURES`].
    pub creature: usize,
    /// Of [`ACTIONS`].
    pub action: usize,
    /// Of [`DIRECTIONS`].
    pub direction: usize,
    /// Of [`GROUNDS`].
    pub ground: usize,
}

impl Subject {
    /// Place among all clips that there can be.
    pub(super) fn index(self) -> usize {
        let Subject { creature, action, direction, ground } = self;
        ((creature * ACTIONS.len() + action) * DIRECTIONS.len() + direction) * GROUNDS.len()
            + ground
    }

    /// Three wordings.
    pub fn captions(self) -> [String; 3] {
        let creature = CREATURES[self.creature].name;
        let ActionName { verb, participle, .. } = ACTIONS[self.action];
        let direction = DIRECTIONS[self.direction];
        let ground = GROUNDS[self.ground].0;
        let article = if creature.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let heading = match (self.action == RUN, direction.starts_with("the ")) {
            (true, true) => format!("to {direction}"),
            (true, false) => format!("to the {direction}"),
            (false, _) => format!("facing {direction}"),
        };
        let (place, background) = match ground.strip_prefix("a ") {
            Some(night) => (format!("in {ground}"), night),
            None => (format!("on {ground}"), ground),
        };
        [
            format!("{article} {creature} {verb} {heading} {place}"),
            format!("{creature} {participle}, facing {direction}, {background} background"),
            format!("{place} {article} {creature} {verb} {heading}"),
        ]
    }

    /// A name for files, such as `fire-ant_run_upper-left_blue-night`.
    pub(super) fn slug(self) -> String {
        let direction = DIRECTIONS[self.direction].trim_start_matches("the ");
        let ground = GROUNDS[self.ground].0.trim_start_matches("a ");
        let (creature, action) = (CREATURES[self.creature].name, ACTIONS[self.action].name);
        format!("{creature}_{action}_{direction}_{ground}").replace(' ', "-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captions of the embedded model's training clips.
    #[test]
    fn captions_are_those_the_embedded_model_knows() {
        let of =
            |creature, action, direction, ground| Subject { creature, action, direction, ground };
        assert_eq!(
            of(0, 1, 5, 2).captions(),
            [
                "a goblin runs to the lower right on grey stone",
                "goblin running, facing the lower right, grey stone background",
                "on grey stone a goblin runs to the lower right",
            ]
        );
        assert_eq!(of(1, 1, 0, 0).captions()[0], "a zombie runs to the left on green grass");
        let night = of(5, 3, 6, 3);
        assert_eq!(night.captions()[0], "an ice ant dies facing the bottom in a blue night");
        assert_eq!(night.captions()[1], "ice ant dying, facing the bottom, blue night background");
        assert_eq!(night.slug(), "ice-ant_die_bottom_blue-night");
    }
}
