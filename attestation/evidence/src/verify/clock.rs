//! As of when: what the evidence says of time, and what vouches for that.

use super::reason::says;
use super::{Doubt, Reason};
use crate::attest::ClockInfo;
use crate::format::Evidence;
use crate::quote::Attest;
use crate::time::Timestamp;

/// Most that the appliance's clock may go back between two things that it dated, in seconds: corrections, but not a
/// clock that was set to hide when something happened.
pub const CLOCK_SET_BACK_S_MAX: i64 = 300;

/// When the evidence was made. The auditor's own clock is not part of it: whoever shows a verdict shows that beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsOf {
    /// What the appliance's own clock said, which nothing vouches for; `None` if it is no time.
    pub created: Option<Timestamp>,
    /// What the TPM signed of its clock and counters; `None` unless the quote is established.
    pub clock: Option<ClockInfo>,
}

impl AsOf {
    pub(super) fn of(evidence: &Evidence, attest: Option<&Attest>) -> Self {
        Self {
            created: Timestamp::parse(&evidence.created),
            clock: attest.map(|attest| attest.clock),
        }
    }

    pub(super) fn counters(&self) -> Vec<Reason> {
        let Some(ClockInfo { clock_ms, reset_count, restart_count, safe }) = self.clock else {
            return Vec::new();
        };
        let seconds = clock_ms / 1000;
        let mut facts = vec![says!(
            "the TPM's clock: {seconds} s since it was cleared; {reset_count} resets, {restart_count} restarts since the last of them",
            "l'horloge du TPM : {seconds} s depuis son effacement ; {reset_count} redémarrages, {restart_count} reprises depuis le dernier"
        )];
        if !safe {
            facts.push(says!(
                "the TPM lost power without a shutdown not long ago: its clock may repeat itself",
                "le TPM a perdu l'alimentation sans arrêt il y a peu : son horloge peut se répéter"
            ));
        }
        facts
    }

    pub(super) fn created_fact(&self) -> Vec<Reason> {
        let created = self.created.map(|created| created.to_string());
        vec![match created {
            Some(created) => says!(
                "the appliance's own clock said {created}; nothing vouches for it",
                "l'horloge de l'appliance disait {created} ; rien ne la garantit"
            ),
            None => says!(
                "the evidence says no time at which it was made",
                "les preuves ne disent pas quand elles ont été faites"
            ),
        }]
    }
}

/// Things that the appliance dated, in the order in which they happened.
#[derive(Debug, Default)]
pub(super) struct Order {
    last: Option<(Timestamp, Reason)>,
}

impl Order {
    /// Goes on to what was dated `time`; refuses a clock that was set back.
    pub(super) fn follow(&mut self, time: &str, what: Reason) -> Result<(), Doubt> {
        let Some(time) = Timestamp::parse(time) else {
            let (en, fr) = (what.en(), what.fr());
            return Err(Doubt::refuted(says!(
                "{en} is dated {time:?}, which is no time in UTC",
                "{fr} porte la date {time:?}, qui n'est pas une heure UTC"
            )));
        };
        if let Some((before, earlier)) = &self.last {
            let back_s = before.unix().saturating_sub(time.unix());
            if back_s > CLOCK_SET_BACK_S_MAX {
                let (en, fr) = (what.en(), what.fr());
                let (en_before, fr_before) = (earlier.en(), earlier.fr());
                return Err(Doubt::refuted(says!(
                    "{en} is dated {time}, {en_before} before it {before}: the appliance's clock was set back by {back_s} s, so its dates mean nothing",
                    "{fr} porte la date {time}, {fr_before} auparavant {before} : l'horloge de l'appliance a été reculée de {back_s} s, ses dates ne valent rien"
                )));
            }
        }
        self.last = Some((time, what));
        Ok(())
    }
}
