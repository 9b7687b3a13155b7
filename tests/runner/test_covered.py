"""Coverage counts the lines of the product and no lines of tests, and is not rounded up to the goal."""

import tempfile
import unittest
from pathlib import Path

import covered

SOURCE = """\
use std::fmt;

#[cfg(test)]
use tests::helper;
#[cfg(test)]
mod more;

fn product() {
    work();
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    fn helper() {
        work();
    }
}

impl Product {
    #[cfg(test)]
    fn for_tests(&self) -> u8 {
        let x = 1;
        x
    }

    fn used(&self) {}
}
"""


class CoveredTest(unittest.TestCase):
    def test_product_and_tests_are_told_apart_by_path(self):
        for path in ("server/gateway/src/forward.rs", "base/net/src/lib.rs", "cli/src/main.rs"):
            self.assertTrue(covered.is_product(path), path)
        for path in ("tests/src/lib.rs", "server/tests/gateway/main.rs", "orchestrator/src/plan/tests.rs", "cli/build.rs", "bench/src/main.rs"):
            self.assertFalse(covered.is_product(path), path)

    def test_items_for_unit_tests_are_left_out(self):
        lines = SOURCE.splitlines()
        left = [lines[number - 1].strip() for number in range(1, len(lines) + 1) if number not in covered.lines_of_tests(SOURCE)]
        self.assertEqual([line for line in left if line],
                         ["use std::fmt;", "fn product() {", "work();", "}", "impl Product {", "fn used(&self) {}", "}"])

    def test_a_line_ran_if_it_ran_in_any_executable(self):
        text = "SF:/r/a.rs\nDA:1,0\nDA:2,3\nend_of_record\nSF:/r/a.rs\nDA:1,2\nDA:2,0\nend_of_record\n"
        self.assertEqual(covered.read_lcov(text), {"/r/a.rs": {1: 2, 2: 3}})

    def counted(self, root, lines):
        path = Path(root) / "base/a/src/lib.rs"
        path.parent.mkdir(parents=True, exist_ok=True)
        (Path(root) / "base/a/Cargo.toml").touch()
        path.write_text(SOURCE)
        return covered.of_product({str(path): lines, "/elsewhere/b.rs": {1: 0}}, Path(root))

    def test_report_names_crates_and_files(self):
        with tempfile.TemporaryDirectory() as root:
            counts = self.counted(root, {8: 1, 9: 0, 15: 1})
            self.assertEqual(counts, {"base/a/src/lib.rs": {8: 1, 9: 0}})
            text, is_reached = covered.summary(counts, Path(root), 50)
            self.assertTrue(is_reached)
            self.assertIn("Tests run 50.0 % of the product's lines (1 of 2); the goal is 50 %.", text)
            self.assertIn("| base/a | 2 | 1 | 50.0 % |", text)
            self.assertIn("| base/a/src/lib.rs | 1 | 2 |", text)
            self.assertEqual(covered.lcov(counts), "SF:base/a/src/lib.rs\nDA:8,1\nDA:9,0\nLF:2\nLH:1\nend_of_record\n")

    def test_the_goal_is_not_reached_by_rounding_or_by_nothing(self):
        counts = {"base/a/src/lib.rs": {number: int(number <= 7996) for number in range(1, 10001)}}
        text, is_reached = covered.summary(counts, Path("/nowhere"), 80)
        self.assertFalse(is_reached)
        self.assertIn("79.9 %", text)
        self.assertFalse(covered.summary({}, Path("/nowhere"), 80)[1])


if __name__ == "__main__":
    unittest.main()
