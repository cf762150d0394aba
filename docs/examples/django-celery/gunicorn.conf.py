import os

bind = f"{os.environ.get('HOST', '0.0.0.0')}:{os.environ['PORT']}"
threads = 20
