"""What a completion is worth: functions of its text and the record it answers, by name in `registry`."""
