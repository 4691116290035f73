"""One comparison: nodes up, links proven, ranks started and ordered, results written."""
