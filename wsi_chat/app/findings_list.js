// The findings as a table of which only the rows in sight exist. Choosing one changes one row and sends no other again.

export default {
  template: `
    <q-table ref="table" class="wsi-list full-width" flat dense virtual-scroll hide-bottom :rows-per-page-options="[0]"
      :columns="columns" :rows="shown" row-key="id">
      <template v-slot:body="props">
        <q-tr :props="props" :class="{chosen: props.row.id === now, rejected: props.row.state === 'reject'}" tabindex="0"
          :aria-selected="props.row.id === now ? 'true' : 'false'" :aria-label="props.row.say" :data-id="props.row.id">
          <q-td key="name" :props="props" class="name"><span class="mark" aria-hidden="true"
            :style="{'--c': props.row.color}">{{ props.row.glyph }}</span>{{ props.row.name }}
            <span class="quiet">{{ props.row.id }}</span></q-td>
          <q-td key="p" :props="props" class="num">{{ props.row.p }}</q-td>
          <q-td key="state" :props="props" class="num"><span :title="props.row.said">{{ props.row.sign }}</span></q-td>
        </q-tr>
      </template>
    </q-table>`,
  props: { columns: Array, rows: Array, chosen: String },
  data() {
    // frozen, so that Vue watches the list as a whole and not thousands of rows
    return { shown: Object.freeze([...this.rows]), now: this.chosen };
  },
  watch: {
    rows(rows) { this.shown = Object.freeze([...rows]); },
    chosen(name) { this.now = name; },
  },
  methods: {
    choose(name, place) {
      this.now = name;
      if (place >= 0) this.$nextTick(() => this.$refs.table.scrollTo(place, "center-force"));
    },
    amend(rows) {
      const by = new Map(rows.map((row) => [row.id, row]));
      this.shown = Object.freeze(this.shown.map((row) => by.get(row.id) || row));
    },
  },
};
