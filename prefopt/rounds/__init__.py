"""Room: rounds. Sample from the policy, score, select, train on what was selected, evaluate, repeat."""
