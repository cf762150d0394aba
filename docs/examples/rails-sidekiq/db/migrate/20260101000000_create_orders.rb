class CreateOrders < ActiveRecord::Migration[6.1]
  def change
    create_table :orders do |t|
      t.string :item, null: false
      t.string :state, null: false, default: "new"
      t.timestamps
    end
  end
end
