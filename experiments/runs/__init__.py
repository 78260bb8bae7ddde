"""Run folders and the work on them: `folder` owns what lies in one, `work` makes it true, `engines` say where."""
