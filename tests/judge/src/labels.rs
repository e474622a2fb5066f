//! What clips are told apart by: heads, their classes, and prompts that ask for each alike.

use anyhow::{Result, bail};
use data::flare::{ACTIONS, CREATURES, ClipFormat, DIRECTIONS, GROUNDS, SetSettings, Subject};

use crate::draws::{Draws, Purpose};

/// One question about a clip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head {
    /// Which creature.
    Creature,
    /// What it does.
    Action,
    /// What it is on.
    Ground,
    /// Where it faces.
    Direction,
}

/// Every head, in the order of reports.
pub const HEADS: [Head; 4] = [Head::Creature, Head::Action, Head::Ground, Head::Direction];

impl Head {
    /// Its name in reports, and in the classifier's parameters.
    pub fn name(self) -> &'static str {
        match self {
            Head::Creature => "creature",
            Head::Action => "action",
            Head::Ground => "ground",
            Head::Direction => "direction",
        }
    }

    /// Count of its classes.
    pub fn n_classes(self) -> usize {
        match self {
            Head::Creature => CREATURES.len(),
            Head::Action => ACTIONS.len(),
            Head::Ground => GROUNDS.len(),
            Head::Direction => DIRECTIONS.len(),
        }
    }

    /// The name of a class.
    pub fn class_name(self, class: usize) -> &'static str {
        match self {
            Head::Creature => CREATURES[class].name,
            Head::Action => ACTIONS[class].name,
            Head::Ground => GROUNDS[class].0,
            Head::Direction => DIRECTIONS[class],
        }
    }

    /// The class of a subject.
    pub fn class(self, subject: Subject) -> usize {
        match self {
            Head::Creature => subject.creature,
            Head::Action => subject.action,
            Head::Ground => subject.ground,
            Head::Direction => subject.direction,
        }
    }
}

/// A subject as its mirror image shows it. Directions are numbered clockwise from the left.
pub fn mirrored(subject: Subject) -> Subject {
    let n = DIRECTIONS.len();
    Subject { direction: (n + n / 2 - subject.direction) % n, ..subject }
}

/// Some of the Flare set's subjects.
#[derive(Clone, Debug)]
pub struct Subjects {
    all: Vec<Subject>,
    /// The creatures and directions among them, ascending.
    creatures: Vec<usize>,
    directions: Vec<usize>,
}

impl Subjects {
    /// All of these creatures (none for every one) in 4 or 8 directions.
    ///
    /// # Errors
    /// Creatures or numbers of directions that there are not.
    pub fn new(creatures: &[String], n_directions: usize) -> Result<Subjects> {
        let settings =
            SetSettings { creatures: creatures.to_vec(), n_directions, format: ClipFormat::Folder };
        let all = settings.subjects()?;
        let among = |of: fn(&Subject) -> usize| {
            let mut found: Vec<usize> = all.iter().map(of).collect();
            found.sort_unstable();
            found.dedup();
            found
        };
        let (creatures, directions) = (among(|s| s.creature), among(|s| s.direction));
        Ok(Subjects { all, creatures, directions })
    }

    /// Every one, in the order of the data set.
    pub fn all(&self) -> &[Subject] {
        &self.all
    }

    /// Whether a classifier does not see this subject's poses in training: each creature's action in one of the
    /// directions.
    pub fn is_held_out(&self, subject: Subject) -> bool {
        let rank = self.directions.binary_search(&subject.direction).unwrap_or(0);
        let shift = 3 * subject.creature + 2 * subject.action;
        (rank + shift).is_multiple_of(self.directions.len())
    }

    /// `n` subjects to ask for, in which every creature, action, ground and direction is as frequent as the others
    /// of its kind, but for 1. Which ones meet is drawn by `seed`.
    ///
    /// # Errors
    /// 0 of them.
    pub fn balanced(&self, n: usize, seed: u64) -> Result<Vec<Subject>> {
        if n == 0 {
            bail!("0 clips are asked for, expected 1 or more");
        }
        let classes = |count: usize| (0..count).collect::<Vec<usize>>();
        let creatures = spread(&self.creatures, n, seed, 0);
        let actions = spread(&classes(ACTIONS.len()), n, seed, 1);
        let grounds = spread(&classes(GROUNDS.len()), n, seed, 2);
        let directions = spread(&self.directions, n, seed, 3);
        let subject = |i: usize| Subject {
            creature: creatures[i],
            action: actions[i],
            ground: grounds[i],
            direction: directions[i],
        };
        Ok((0..n).map(subject).collect())
    }

    /// How often a guess is right, by head, on balanced prompts.
    pub fn chance(&self, head: Head) -> f64 {
        let n = match head {
            Head::Creature => self.creatures.len(),
            Head::Direction => self.directions.len(),
            Head::Action | Head::Ground => head.n_classes(),
        };
        1.0 / n as f64
    }
}

/// `n` of `values`: all of them in a drawn order, again and again in other orders.
fn spread(values: &[usize], n: usize, seed: u64, kind: u64) -> Vec<usize> {
    let mut spread = Vec::with_capacity(n + values.len());
    for round in 0..n.div_ceil(values.len()) as u64 {
        let mut order = values.to_vec();
        Draws::new(seed, Purpose::Prompts, [kind, round]).shuffle(&mut order);
        spread.extend(order);
    }
    spread.truncate(n);
    spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_swap_left_and_right() {
        let of = |direction| Subject { creature: 0, action: 0, direction, ground: 0 };
        let mirror = |direction| DIRECTIONS[mirrored(of(direction)).direction];
        let expected = [
            "right",
            "the upper right",
            "the top",
            "the upper left",
            "left",
            "the lower left",
            "the bottom",
            "the lower right",
        ];
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(mirror), expected);
    }

    #[test]
    fn one_direction_of_each_action_is_held_out() {
        for (creatures, n_directions) in [(&[][..], 8), (&["zombie", "goblin"][..], 4)] {
            let creatures: Vec<String> = creatures.iter().map(ToString::to_string).collect();
            let subjects = Subjects::new(&creatures, n_directions).unwrap();
            let held_out: Vec<Subject> =
                subjects.all().iter().copied().filter(|&s| subjects.is_held_out(s)).collect();
            assert_eq!(held_out.len() * n_directions, subjects.all().len());
            for of_action in
                held_out.chunk_by(|a, b| (a.creature, a.action) == (b.creature, b.action))
            {
                assert_eq!(of_action.len(), GROUNDS.len());
                assert!(of_action.iter().all(|s| s.direction == of_action[0].direction));
            }
        }
    }

    #[test]
    fn prompts_ask_for_every_class_alike() {
        let creatures = ["zombie", "minotaur", "fire ant", "hobgoblin"].map(String::from);
        let subjects = Subjects::new(&creatures, 4).unwrap();
        let asked = subjects.balanced(200, 42).unwrap();
        for head in HEADS {
            let mut counts = vec![0usize; head.n_classes()];
            asked.iter().for_each(|&subject| counts[head.class(subject)] += 1);
            counts.retain(|&count| count > 0);
            assert_eq!(counts, [50; 4], "{head:?}");
            assert_eq!(subjects.chance(head), 0.25);
        }
        assert_eq!(asked, subjects.balanced(200, 42).unwrap());
        assert_ne!(asked, subjects.balanced(200, 43).unwrap());
        // Most combinations are asked for at most twice.
        let mut places: Vec<usize> = asked
            .iter()
            .map(|s| ((s.creature * 4 + s.action) * 8 + s.direction) * 4 + s.ground)
            .collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 120, "{}", places.len());
        assert!(subjects.balanced(0, 42).is_err());
    }
}
