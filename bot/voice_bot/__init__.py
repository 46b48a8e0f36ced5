"""What the bot has around the pipeline of `bot.py`: settings, persona, turn-taking, sessions, web app, recording."""
