"""mergekit's recipes: its methods, what a recipe says, and the plan of every tensor."""
