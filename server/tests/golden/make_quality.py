"""Makes quality.json: BLEU by sacrebleu 2.5.1 and ROUGE by rouge-score 0.1.2 (pip install sacrebleu==2.5.1 rouge-score==0.1.2).

    python make_quality.py > quality.json
"""
import json

from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

PAIRS = [
    ("the cat sat on the mat", ["the cat sat on the mat"]),
    ("the cat sat", ["the cat sat on the mat"]),
    ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
    ("It is a guide to action which ensures that the military always obeys the commands of the party.",
     ["It is a guide to action that ensures that the military will forever heed Party commands.",
      "It is the guiding principle which guarantees the military forces always being under the command of the Party."]),
    ("Hello, World! It costs $3,000.50 - or 12-13 euros.", ["hello world: it costs $3,000.50, or 12-13 Euros"]),
    ("", ["something"]),
    ("something", [""]),
    ("completely different words here", ["nothing shared at all"]),
    ("a", ["a"]),
    ("a b", ["a b c d e f g"]),
    ("one two three four five", ["five four three two one"]),
    ("Mia found a red kite &amp; gave it to Tom &quot;gladly&quot;.", ["Mia found the red kite & gave it \"gladly\" to Tom."]),
    ("Größe, naïve café – déjà vu… 東京タワー", ["größe naive café - deja vu 東京 タワー"]),
    ("line one\nline two-\nhyphen <skipped> end   ", ["line one line twohyphen end"]),
    ("x" * 50 + " y z", ["x y z"]),
    ("tabs\tand\u00a0spaces\u2003mixed\x1cup", ["tabs and spaces mixed up"]),
    ("{braces} [brackets] (parens) a/b a\\b 50% #1 @me it's", ["{ braces } [ brackets ] ( parens ) a / b a \\ b 50 % # 1 @ me it's"]),
]
METHODS = [("exp", None), ("floor", None), ("floor", 0.01), ("add-k", None), ("add-k", 0.5), ("none", None)]

cases = []
scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
for candidate, references in PAIRS:
    case = {"candidate": candidate, "references": references, "bleu": [], "rouge": {}}
    for method, value in METHODS:
        for lowercase in (False, True):
            for effective in (False, True):
                score = BLEU(smooth_method=method, smooth_value=value, lowercase=lowercase, effective_order=effective, force=True)
                result = score.sentence_score(candidate, references)
                case["bleu"].append({
                    "smoothing": method, "value": value, "lowercase": lowercase, "effective_order": effective,
                    "score": result.score, "precisions": result.precisions, "bp": result.bp,
                    "candidate_length": result.sys_len, "reference_length": result.ref_len,
                })
    for name, score in scorer.score_multi(references, candidate).items():
        case["rouge"][name] = [score.precision, score.recall, score.fmeasure]
    cases.append(case)
print(json.dumps(cases, ensure_ascii=True, indent=0))
