threads_count = Integer(ENV.fetch("RAILS_MAX_THREADS", 20))
threads threads_count, threads_count
environment ENV.fetch("RAILS_ENV", "production")
port ENV.fetch("PORT"), ENV.fetch("HOST", "0.0.0.0")
