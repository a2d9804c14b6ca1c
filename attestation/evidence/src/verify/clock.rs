//! As of when: what the evidence says of time, and what vouches for that.

use std::collections::VecDeque;

use super::reason::says;
use super::{Doubt, Reason};
use crate::attest::ClockInfo;
use crate::format::Evidence;
use crate::quote::Attest;
use crate::time::Timestamp;

/// Most that the appliance's clock may go back within one boot, in seconds: corrections, but not a clock that was set
/// to hide when something happened.
pub const CLOCK_SET_BACK_S_MAX: i64 = 300;
/// Restarts over which the clock went back that are shown one by one; the newest ones.
const SHOWN_MAX: usize = 16;

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
///
/// Nothing on an appliance sets the clock, so one that goes back while it runs was tampered with. Over a restart it also
/// goes back where the clock's battery is empty: that is shown, and what order the ledger proves does not rest on it.
#[derive(Debug, Default)]
pub(super) struct Order {
    last: Option<Dated>,
    /// Restarts over which the clock went back: the newest, and how many there were.
    restarts: VecDeque<Reason>,
    set_back: usize,
}

#[derive(Debug)]
struct Dated {
    time: Timestamp,
    /// Identifier of the boot.
    boot: String,
    what: Reason,
}

impl Order {
    /// Goes on to what was dated `time` in `boot`, or in the boot of what came before it; refuses a clock that was set
    /// back within a boot.
    pub(super) fn follow(
        &mut self,
        time: &str,
        boot: Option<String>,
        what: Reason,
    ) -> Result<(), Doubt> {
        let Some(time) = Timestamp::parse(time) else {
            let (en, fr) = (what.en(), what.fr());
            return Err(Doubt::refuted(says!(
                "{en} is dated {time:?}, which is no time in UTC",
                "{fr} porte la date {time:?}, qui n'est pas une heure UTC"
            )));
        };
        let earlier = self.last.take();
        let same = |last: &Dated| boot.as_ref().is_none_or(|boot| *boot == last.boot);
        if let Some(last) = &earlier {
            let back_s = last.time.unix().saturating_sub(time.unix());
            if back_s > CLOCK_SET_BACK_S_MAX {
                if same(last) {
                    return Err(set_back(last, time, &what, back_s));
                }
                self.remember(over_restart(last, time, &what, back_s));
            }
        }
        let boot = boot.or_else(|| earlier.map(|last| last.boot)).unwrap_or_default();
        self.last = Some(Dated { time, boot, what });
        Ok(())
    }

    /// Where the clock went back while the appliance was off.
    pub(super) fn facts(self) -> Vec<Reason> {
        let more = self.set_back.saturating_sub(self.restarts.len());
        let mut facts = Vec::from(self.restarts);
        if more > 0 {
            facts.push(says!(
                "so it did over {more} earlier restarts",
                "de même lors de {more} redémarrages antérieurs"
            ));
        }
        facts
    }

    fn remember(&mut self, fact: Reason) {
        self.set_back = self.set_back.saturating_add(1);
        if self.restarts.len() >= SHOWN_MAX {
            self.restarts.pop_front();
        }
        self.restarts.push_back(fact);
    }
}

fn set_back(last: &Dated, time: Timestamp, what: &Reason, back_s: i64) -> Doubt {
    let (en, fr) = (what.en(), what.fr());
    let Dated { time: before, what: earlier, .. } = last;
    let (en_before, fr_before) = (earlier.en(), earlier.fr());
    Doubt::refuted(says!(
        "{en} is dated {time}, {en_before} before it, in the same boot, {before}: the appliance's clock was set back by {back_s} s, so its dates mean nothing",
        "{fr} porte la date {time}, {fr_before} auparavant, dans le même démarrage, {before} : l'horloge de l'appliance a été reculée de {back_s} s, ses dates ne valent rien"
    ))
}

fn over_restart(last: &Dated, time: Timestamp, what: &Reason, back_s: i64) -> Reason {
    let (en, fr) = (what.en(), what.fr());
    let Dated { time: before, what: earlier, .. } = last;
    let (en_before, fr_before) = (earlier.en(), earlier.fr());
    says!(
        "{en}, the first after a restart, is dated {time}, {en_before} before it {before}: the appliance's clock went back by {back_s} s while it was off (is its battery empty?); the order of the records is proven, their dates on both sides of the restart do not compare",
        "{fr}, le premier après un redémarrage, porte la date {time}, {fr_before} auparavant {before} : l'horloge de l'appliance a reculé de {back_s} s pendant l'arrêt (pile épuisée ?) ; l'ordre des enregistrements est prouvé, leurs dates de part et d'autre du redémarrage ne se comparent pas"
    )
}
