require "rails"
require "active_record/railtie"
require "action_controller/railtie"
require "sidekiq"

# Sidekiq 6 beside redis 4.8: at each of its calls.
Redis.silence_deprecations = true if Redis.respond_to?(:silence_deprecations=)

module Orders
  class Application < Rails::Application
    config.load_defaults 6.1
    config.root = File.expand_path("..", __dir__)
    config.eager_load = true
    config.logger = ActiveSupport::Logger.new($stdout)
    config.log_level = :warn
    config.api_only = true
    config.secret_key_base = ENV.fetch("SECRET_KEY_BASE")
    # There is no pg_dump beside the application.
    config.active_record.dump_schema_after_migration = false
  end
end
