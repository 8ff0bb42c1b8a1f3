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
    /// The spellings of its name, each once. All of them go with the last member.
    pub(super) labels: Vec<Label>,
}

pub(super) struct Member {
    pub(super) record: RecordId,
    label: u16,
    pub(super) form: Form,
    /// What it is shown of it; all, where there is none.
    pub(super) lens: Option<Arc<Lens>>,
}

impl Shared {
    /// Returns its place.
    pub(super) fn join(
        &mut self,
        record: RecordId,
        form: Form,
        label: &Label,
        lens: Option<Arc<Lens>>,
    ) -> u32 {
        let known = self.labels.iter().position(|known| known == label);
        let at = known.unwrap_or_else(|| {
            self.labels.push(label.clone());
            self.labels.len() - 1
        });
        // Of more spellings than that those beyond are told the first one.
        let label = u16::try_from(at).unwrap_or(0);
        self.members.push(Member { record, label, form, lens });
        // There are no more of them than slots.
        u32::try_from(self.members.len() - 1).unwrap_or(u32::MAX)
    }

    /// Returns who has the place now, if anybody.
    pub(super) fn leave(&mut self, place: u32) -> Option<RecordId> {
        let place = place as usize;
        if place < self.members.len() {
            self.members.swap_remove(place);
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
        &self.labels[usize::from(member.label)]
    }
}

impl Member {
    /// Those that are told the same thing in the same way have the same.
    pub(super) fn kind(&self) -> (u16, Form) {
        (self.label, self.form)
    }
}
