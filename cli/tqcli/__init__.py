"""The command line of tqann: parse, call one function, print. Every heavy import is inside a command."""
