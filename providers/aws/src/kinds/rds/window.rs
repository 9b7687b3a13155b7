//! Windows of a server in UTC: backups every day, `03:00-04:00`, and maintenance every week, `sun:05:00-sun:09:00`. RDS refuses windows
//! that overlap: <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_UpgradeDBInstance.Maintenance.html>.

use textnlp_provider::component::MaintenanceWindow;
use textnlp_provider::settings::Weekday;
use textnlp_provider::units::TimeOfDay;

const DAY: u32 = MaintenanceWindow::DAY;
/// Backups are taken at night in Europe and America.
const BACKUPS: u32 = 3 * 60;
/// The minutes of that.
const BACKUP_LENGTH: u32 = 60;
/// The minutes of the maintenance window that RDS chooses, and the least.
const LEAST: u32 = 30;

/// The weekly window.
pub(crate) fn maintenance(window: &MaintenanceWindow) -> String {
    let short = |day: Weekday| &day.as_str()[..3];
    let (day, at) = window.after(window.minutes());
    format!("{}:{}-{}:{at}", short(window.day), window.at, short(day))
}

/// The daily window of backups: the usual one, or right after maintenance that it would overlap with.
pub(crate) fn backups(maintenance: Option<&MaintenanceWindow>) -> String {
    let overlapping = maintenance.filter(|one| is_overlap((BACKUPS, BACKUP_LENGTH), (one.at.0, one.minutes())));
    let from = overlapping.map_or(BACKUPS, |one| one.after(one.minutes()).1.0);
    format!("{}-{}", TimeOfDay(from), TimeOfDay((from + BACKUP_LENGTH) % DAY))
}

/// The maintenance window that a server gets whose present one overlaps with these backups: right after them, and as short as that
/// which RDS chooses.
pub(super) fn beside(backups: &str, maintenance: &str) -> Option<String> {
    let range = |from: &str, to: &str| {
        let (from, to) = (from.parse::<TimeOfDay>().ok()?.0, to.parse::<TimeOfDay>().ok()?.0);
        Some((from, (to + DAY - from) % DAY))
    };
    let (from, to) = backups.split_once('-')?;
    let (begin, end) = maintenance.split_once('-')?;
    let ((day, begin), (_, end)) = (begin.split_once(':')?, end.split_once(':')?);
    let (first, length) = range(from, to)?;
    let after = first + length + LEAST;
    let is_needed = after < DAY && is_overlap((first, length), range(begin, end)?);
    is_needed.then(|| format!("{day}:{to}-{day}:{}", TimeOfDay(after)))
}

/// Whether two periods of a day overlap, each by its first minute and its minutes.
fn is_overlap(one: (u32, u32), other: (u32, u32)) -> bool {
    (other.0 + DAY - one.0) % DAY < one.1 || (one.0 + DAY - other.0) % DAY < other.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_those_of_rds_and_never_overlap() {
        for (day, at, hours, expected, backed_up) in [
            (Weekday::Sunday, "04:00", 4, "sun:04:00-sun:08:00", "03:00-04:00"),
            (Weekday::Tuesday, "03:30", 6, "tue:03:30-tue:09:30", "09:30-10:30"),
            (Weekday::Sunday, "22:30", 4, "sun:22:30-mon:02:30", "03:00-04:00"),
            (Weekday::Sunday, "23:30", 4, "sun:23:30-mon:03:30", "03:30-04:30"),
            (Weekday::Saturday, "00:30", 23, "sat:00:30-sat:23:30", "23:30-00:30"),
        ] {
            let window = MaintenanceWindow { day, at: at.parse().unwrap(), hours };
            assert_eq!((maintenance(&window).as_str(), backups(Some(&window)).as_str()), (expected, backed_up));
            assert_eq!(beside(backed_up, expected), None);
        }
        assert_eq!(backups(None), "03:00-04:00");
        let moved = beside("03:00-04:00", "sun:23:00-mon:09:00");
        assert_eq!(moved.as_deref(), Some("sun:04:00-sun:04:30"));
        assert_eq!(beside("03:00-04:00", &moved.unwrap()), None);
    }
}
