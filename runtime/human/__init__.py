"""What people say to a stream: questions and approvals, the bridge that they travel over, steering."""
