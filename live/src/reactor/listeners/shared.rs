//! What many listen to: who they are, and in which form each gets it.

use super::records::RecordId;
use crate::{
    dialects::mastodon::{Form, stream::Label},
    mastodon::Lens,
};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Shared {
    pub(super) members: Vec<Member>,
    /// The spellings of its name, and how many members have each. Where nobody has one, the next one comes.
    labels: Vec<(Label, u32)>,
}

pub(super) struct Member {
    pub(super) record: RecordId,
    label: u16,
    pub(super) form: Form,
    /// What it is shown of it; all, where there is none.
    pub(super) lens: Option<Arc<Lens>>,
}

/// The spellings of one name that are told apart.
const MAX_LABELS: usize = 1_024;

impl Shared {
    /// Returns its place.
    pub(super) fn join(
        &mut self,
        record: RecordId,
        form: Form,
        label: &Label,
        lens: Option<Arc<Lens>>,
    ) -> u32 {
        let at = self.place_of(label);
        self.labels[at].1 += 1;
        // There are not that many.
        let label = u16::try_from(at).unwrap_or(0);
        self.members.push(Member { record, label, form, lens });
        // There are no more of them than slots.
        u32::try_from(self.members.len() - 1).unwrap_or(u32::MAX)
    }

    fn place_of(&mut self, label: &Label) -> usize {
        if let Some(known) = self.labels.iter().position(|(known, _)| known == label) {
            return known;
        }
        if let Some(free) = self.labels.iter().position(|(_, members)| *members == 0) {
            self.labels[free].0 = label.clone();
            return free;
        }
        if self.labels.len() >= MAX_LABELS {
            // Those beyond are told the first one.
            return 0;
        }
        self.labels.push((label.clone(), 0));
        self.labels.len() - 1
    }

    /// Returns who has the place now, if anybody.
    pub(super) fn leave(&mut self, place: u32) -> Option<RecordId> {
        let place = place as usize;
        if place < self.members.len() {
            let gone = self.members.swap_remove(place);
            self.labels[usize::from(gone.label)].1 -= 1;
        }
        self.members.get(place).map(|member| member.record)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn get(&self, place: u32) -> Option<&Member> {
        self.members.get(place as usize)
    }

    pub(super) fn label(&self, member: &Member) -> &Label {
        &self.labels[usize::from(member.label)].0
    }
}

impl Member {
    /// Those that are told the same thing in the same way have the same.
    pub(super) fn kind(&self) -> (u16, Form) {
        (self.label, self.form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_kept_while_somebody_has_them() {
        let mut shared = Shared::default();
        let label = |number: usize| Label::of("hashtag", &number.to_string());
        shared.join(0, Form::Socket, &label(0), None);
        for number in 1..3 * MAX_LABELS {
            let place = shared.join(1, Form::Socket, &label(number), None);
            assert_eq!(shared.label(shared.get(place).unwrap()), &label(number));
            shared.leave(place);
        }
        assert_eq!(shared.labels.len(), 2);
        for number in 0..2 * MAX_LABELS {
            shared.join(2, Form::Socket, &label(number), None);
        }
        assert_eq!(shared.labels.len(), MAX_LABELS);
    }
}
