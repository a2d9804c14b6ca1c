//! Moments as files write them: RFC 3339 in UTC.
//! Invariant: nothing here reads a clock; a [`Timestamp`] is what somebody said.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;

const DAY_SECONDS: i64 = 86_400;
/// Days of 400 years of the Gregorian calendar, and from 0000-03-01 to 1970-01-01.
const ERA_DAYS: i64 = 146_097;
const EPOCH_DAYS: i64 = 719_468;
/// Most digits of a second's fraction.
const FRACTION_DIGITS_MAX: usize = 9;

/// A moment, to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The moment that many seconds after 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn from_unix(seconds: i64) -> Self {
        Self(seconds)
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn unix(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339 in UTC (`2026-11-01T12:00:00Z`); a fraction of a second is read and dropped.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (seconds, rest) = text.split_at_checked(19)?;
        let shape = b"0000-00-00T00:00:00";
        let shaped = seconds
            .bytes()
            .zip(shape)
            .all(|(byte, &want)| if want == b'0' { byte.is_ascii_digit() } else { byte == want });
        let fraction = rest.strip_suffix('Z')?;
        let whole = fraction.is_empty()
            || fraction.strip_prefix('.').is_some_and(|digits| {
                (1..=FRACTION_DIGITS_MAX).contains(&digits.len())
                    && digits.bytes().all(|byte| byte.is_ascii_digit())
            });
        let within = |from, to, low, high| {
            let number: i64 = seconds.get(from..to)?.parse().ok()?;
            (low..=high).contains(&number).then_some(number)
        };
        let (year, month, day) =
            (within(0, 4, 0, 9999)?, within(5, 7, 1, 12)?, within(8, 10, 1, 31)?);
        // A leap second is the first one of the next minute.
        let (hour, minute, second) =
            (within(11, 13, 0, 23)?, within(14, 16, 0, 59)?, within(17, 19, 0, 60)?);
        let of_day = hour.checked_mul(3600)?.checked_add(minute.checked_mul(60)?)?;
        let days = days_from_civil(year, month, day)?.checked_mul(DAY_SECONDS)?;
        (shaped && whole).then_some(Self(days.checked_add(of_day)?.checked_add(second)?))
    }
}

/// RFC 3339 in UTC, to the second; the number of seconds for years that RFC 3339 cannot write.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, of_day) = (self.0.div_euclid(DAY_SECONDS), self.0.rem_euclid(DAY_SECONDS));
        match civil_from_days(days) {
            Some((year @ 0..=9999, month, day)) => {
                let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
                write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
            }
            _ => write!(f, "{} s", self.0),
        }
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar; years are counted from March, so that the leap day
/// is a year's last.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = month.checked_add(9)?.rem_euclid(12).checked_mul(153)?.checked_add(2)? / 5;
    let leaps = (of_era / 4).checked_sub(of_era / 100)?;
    era.checked_mul(ERA_DAYS)?
        .checked_add(of_era.checked_mul(365)?)?
        .checked_add(leaps)?
        .checked_add(of_year)?
        .checked_add(day)?
        .checked_sub(1)?
        .checked_sub(EPOCH_DAYS)
}

/// Year, month and day: the inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> Option<(i64, i64, i64)> {
    let days = days.checked_add(EPOCH_DAYS)?;
    let (era, of_era) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    // Of the 4-year, 100-year and 400-year leap days, those before this day.
    let leaps = (of_era / 1460).checked_sub(of_era / 36_524)?.checked_add(of_era / 146_096)?;
    let year_of_era = of_era.checked_sub(leaps)? / 365;
    let before = year_of_era
        .checked_mul(365)?
        .checked_add(year_of_era / 4)?
        .checked_sub(year_of_era / 100)?;
    let of_year = of_era.checked_sub(before)?;
    let shifted = of_year.checked_mul(5)?.checked_add(2)? / 153;
    let day = of_year.checked_sub(shifted.checked_mul(153)?.checked_add(2)? / 5)?.checked_add(1)?;
    let month = if shifted < 10 { shifted.checked_add(3)? } else { shifted.checked_sub(9)? };
    let year = era.checked_mul(400)?.checked_add(year_of_era)?;
    Some((if month <= 2 { year.checked_add(1)? } else { year }, month, day))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_written() {
        for (text, unix) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59Z", -1),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-11-24T07:48:09Z", 1_795_506_489),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
            ("0000-01-01T00:00:00Z", -62_167_219_200),
        ] {
            assert_eq!(Timestamp::parse(text).unwrap().unix(), unix, "{text}");
            assert_eq!(Timestamp::from_unix(unix).to_string(), text);
        }
        let with = |text| Timestamp::parse(text).unwrap().unix();
        assert_eq!(with("2026-11-24T07:48:09.123456789Z"), 1_795_506_489);
        assert_eq!(with("2016-12-31T23:59:60Z"), with("2017-01-01T00:00:00Z"));
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in -150_000..150_000 {
            let (year, month, date) = civil_from_days(day).unwrap();
            assert_eq!(days_from_civil(year, month, date), Some(day));
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "",
            "2026-11-24",
            "2026-11-24T07:48:09",
            "2026-11-24T07:48:09+00:00",
            "2026-11-24 07:48:09Z",
            "2026-11-24T07:48:09.Z",
            "2026-11-24T07:48:09.0123456789Z",
            "2026-13-24T07:48:09Z",
            "2026-11-00T07:48:09Z",
            "2026-11-24T24:00:00Z",
            "+026-11-24T07:48:09Z",
            "2026-11-24T07:48:09Zé",
        ] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
        assert_eq!(Timestamp::from_unix(i64::MAX).to_string(), "9223372036854775807 s");
    }
}
