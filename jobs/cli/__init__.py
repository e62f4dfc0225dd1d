"""What several jobs, or the files of one, share on the command line; not a job itself."""
